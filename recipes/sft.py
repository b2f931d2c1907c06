"""Fine-tune the base model on the chosen replies, with TRL's SFTTrainer.

    make sft PROFILE=gpt2
    python recipes/sft.py --config configs/gpt2.yaml --learning_rate 1e-5

The adapter is merged at the end: PPO, GRPO and DPO all start from this one model and are measured
against it.
"""

from rlhf_trl.cli import cli, parse


@cli
def main() -> None:
    task, data_config, model_config, args = parse("sft", __doc__)

    from accelerate.utils.memory import clear_device_cache
    from datasets import DatasetDict
    from trl import SFTTrainer

    from rlhf_trl.batching import length_grouped
    from rlhf_trl.frame_loading import start_frame
    from rlhf_trl.models import check_architecture, check_context, load_merged, load_start, lora
    from rlhf_trl.run import Run
    from rlhf_trl.tokens import build_dataset

    args.max_length = None  # the data config bounds the lengths; nothing is cut

    # Load: completion-only examples
    frame = start_frame(model_config, args)
    check_architecture(model_config)
    check_context(model_config, data_config.max_prompt_tokens, data_config.max_completion_tokens)
    pairs = DatasetDict(train=build_dataset(data_config, "sft", frame, args.seed))
    if args.do_eval:
        pairs["validation"] = build_dataset(data_config, "validation", frame, args.seed)
    examples = pairs.map(
        lambda row: {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
            "length": len(row["prompt_ids"]) + len(row["chosen_ids"]),
        },
        remove_columns=pairs["train"].column_names,
        desc="Joining prompts and replies",
    )

    # Build
    configs = data_config, model_config
    with Run(task, args, *configs, frame=frame, data=pairs["train"]) as run:
        trainer = length_grouped(SFTTrainer)(
            model=load_start(model_config, "CAUSAL_LM", frame),
            args=args,
            train_dataset=examples["train"],
            eval_dataset=examples.get("validation"),
            processing_class=frame.tokenizer,
            peft_config=lora(model_config, "CAUSAL_LM"),
        )

        # Train
        run.train(trainer)
    if not run.is_main:
        return
    del trainer
    clear_device_cache(garbage_collection=True)  # makes room for the model as it was saved
    run.publish(load_merged(run.staging, "CAUSAL_LM", frame, model_config))


if __name__ == "__main__":
    main()
