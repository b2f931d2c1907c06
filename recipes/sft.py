"""Fine-tune the base model on the chosen replies, with TRL's SFTTrainer.

    make sft PROFILE=gpt2
    python recipes/sft.py --config configs/gpt2/sft.yaml --learning_rate 1e-5

The adapter is merged at the end: PPO, GRPO and DPO all start from this one model and are measured
against it.
"""

from rlhf_trl.errors import cli


@cli
def main() -> None:
    from trl import ModelConfig, SFTConfig, SFTTrainer

    from rlhf_trl.config import parse
    from rlhf_trl.data import DataConfig, build_dataset, load_tokenizer
    from rlhf_trl.models import check_context, load_causal_lm, lora, merged
    from rlhf_trl.runs import Run

    data_config, model_config, args = parse(__doc__, DataConfig, ModelConfig, SFTConfig)
    args.max_length = None  # the data config bounds the lengths; nothing is cut

    # Load: completion-only examples, tokenized the way the policy will later meet them
    tokenizer = load_tokenizer(model_config.model_name_or_path, args.pad_token, model_config.model_revision)
    check_context(model_config, data_config.max_prompt_tokens, data_config.max_completion_tokens)
    pairs = build_dataset(data_config, "sft", tokenizer, args.seed)
    examples = pairs.map(
        lambda row: {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
        },
        remove_columns=pairs.column_names,
        desc="Joining prompts and replies",
    )

    # Build
    run = Run(args, data_config, model_config)
    trainer = SFTTrainer(
        model=load_causal_lm(model_config, tokenizer),
        args=args,
        train_dataset=examples,
        processing_class=tokenizer,
        peft_config=lora(model_config, "CAUSAL_LM"),
    )

    # Train and save
    run.train(trainer)
    model = merged(trainer.accelerator.unwrap_model(trainer.model), model_config)
    run.publish(trainer, model, tokenizer, data_config, pairs, {"model": model_config.model_name_or_path})


if __name__ == "__main__":
    main()
