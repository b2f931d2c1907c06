"""Train the reward model on preference pairs, with TRL's RewardTrainer.

    make reward PROFILE=gpt2
    python recipes/reward.py --config configs/gpt2.yaml --num_train_epochs 2

The mean and sd of its scores on chosen replies of the validation split, which it was not trained on, are
saved in the model's config.
"""

from rlhf_trl.cli import cli, parse


@cli
def main() -> None:
    task, data_config, model_config, args = parse("reward", __doc__)

    from accelerate.utils.memory import clear_device_cache
    from datasets import DatasetDict
    from trl import RewardTrainer

    from rlhf_trl.batching import length_grouped
    from rlhf_trl.frame_loading import start_frame
    from rlhf_trl.models import check_context, device, load_merged, load_start, lora
    from rlhf_trl.rewards import load_scale_pairs, measure_scale
    from rlhf_trl.run import Run
    from rlhf_trl.tokens import build_dataset

    args.max_length = None  # the data config bounds the lengths; nothing is cut

    # Load
    frame = start_frame(model_config, args)
    check_context(model_config, data_config.max_prompt_tokens, data_config.max_completion_tokens)
    pairs = DatasetDict(train=build_dataset(data_config, "reward", frame, args.seed))
    if args.do_eval:
        pairs["validation"] = build_dataset(data_config, "validation", frame, args.seed)
    examples = pairs.map(
        lambda row: {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")},
        desc="Joining prompts and replies",
    ).select_columns(["chosen_ids", "rejected_ids", "length"])
    held_out = load_scale_pairs(data_config, frame, args.seed)

    # Build
    configs = data_config, model_config
    with Run(task, args, *configs, frame=frame, data=pairs["train"]) as run:
        trainer = length_grouped(RewardTrainer)(
            model=load_start(model_config, "SEQ_CLS", frame),
            args=args,
            train_dataset=examples["train"],
            eval_dataset=examples.get("validation"),
            processing_class=frame.tokenizer,
            peft_config=lora(model_config, "SEQ_CLS"),
        )

        # Train
        run.train(trainer)
    if not run.is_main:
        return
    del trainer
    clear_device_cache(garbage_collection=True)  # makes room for the model as it was saved

    # Save, with the scale of the scores
    model = load_merged(run.staging, "SEQ_CLS", frame, model_config).eval().to(device())
    scale = measure_scale(model, held_out, args.per_device_eval_batch_size)
    model.config.reward_mean, model.config.reward_std = scale
    run.publish(model)


if __name__ == "__main__":
    main()
