"""Train the reward model on preference pairs, with TRL's RewardTrainer.

    make reward PROFILE=gpt2
    python recipes/reward.py --config configs/gpt2/reward.yaml --num_train_epochs 2

The mean and sd of its scores on chosen replies that it was not trained on are saved in the model's config.
"""

from rlhf_trl.errors import cli


@cli
def main() -> None:
    from trl import ModelConfig, RewardConfig, RewardTrainer

    from rlhf_trl.config import parse
    from rlhf_trl.data import DataConfig, build_dataset
    from rlhf_trl.models import check_context, load_sequence_classifier, load_tokenizer, lora, merged
    from rlhf_trl.rewards import score
    from rlhf_trl.runs import Run

    data_config, model_config, args = parse(__doc__, DataConfig, ModelConfig, RewardConfig)
    args.max_length = None  # the data config bounds the lengths; nothing is cut

    # Load: pairs in the one form every user of the reward model gives it, some held out for the scale
    tokenizer = load_tokenizer(model_config.model_name_or_path, args.pad_token, model_config.model_revision)
    check_context(model_config, data_config.max_prompt_tokens, data_config.max_completion_tokens)
    pairs = build_dataset(data_config, "reward", tokenizer, args.seed)
    examples = pairs.map(
        lambda row: {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")},
        remove_columns=[name for name in pairs.column_names if name not in ("chosen_ids", "rejected_ids")],
        desc="Joining prompts and replies",
    )
    split = examples.train_test_split(test_size=max(1, min(256, len(examples) // 10)), shuffle=False)

    # Build
    run = Run(args, data_config, model_config)
    trainer = RewardTrainer(
        model=load_sequence_classifier(model_config, tokenizer),
        args=args,
        train_dataset=split["train"],
        eval_dataset=split["test"],
        processing_class=tokenizer,
        peft_config=lora(model_config, "SEQ_CLS"),
    )

    # Train
    run.train(trainer)
    model = merged(trainer.accelerator.unwrap_model(trainer.model), model_config).eval()

    # Save, with the scale of the scores
    chosen = score(model, split["test"]["chosen_ids"], args.per_device_eval_batch_size, progress="Scale of the scores")
    model.config.reward_mean, model.config.reward_std = chosen.mean().item(), chosen.std().item()
    run.publish(trainer, model, tokenizer, data_config, pairs, {"model": model_config.model_name_or_path})


if __name__ == "__main__":
    main()
