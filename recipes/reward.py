"""Train the reward model on preference pairs, with TRL's RewardTrainer.

    make reward PROFILE=gpt2
    python recipes/reward.py --config configs/gpt2/reward.yaml --num_train_epochs 2

The mean and sd of its scores on chosen replies of the validation split, which it was not trained on, are
saved in the model's config.
"""

from dataclasses import replace

from rlhf_trl.config import RECIPES, parse
from rlhf_trl.errors import cli


@cli
def main() -> None:
    data_config, model_config, run_config, args = parse(__doc__, *RECIPES["reward"])

    from accelerate.utils.memory import clear_device_cache
    from trl import RewardTrainer

    from rlhf_trl.batching import length_grouped
    from rlhf_trl.data import build_dataset, load_tokenizer
    from rlhf_trl.models import check_context, device, load_merged, load_sequence_classifier, lora
    from rlhf_trl.rewards import score
    from rlhf_trl.runs import Run

    args.max_length = None  # the data config bounds the lengths; nothing is cut

    # Load: pairs in the one form in which every user of the reward model gives it its input
    tokenizer = load_tokenizer(model_config.model_name_or_path, args.pad_token, model_config.model_revision)
    check_context(model_config, data_config.max_prompt_tokens, data_config.max_completion_tokens)
    pairs = build_dataset(data_config, "reward", tokenizer, args.seed)
    examples = pairs.map(
        lambda row: {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")},
        remove_columns=[name for name in pairs.column_names if name not in ("chosen_ids", "rejected_ids", "length")],
        desc="Joining prompts and replies",
    )
    held_out = build_dataset(replace(data_config, max_rows=256), "validation", tokenizer, args.seed)

    # Build
    parents = {"model": model_config.model_name_or_path}
    run = Run(args, data_config, model_config, data=pairs, parents=parents, fresh=run_config.fresh)
    trainer = length_grouped(RewardTrainer)(
        model=load_sequence_classifier(model_config, tokenizer),
        args=args,
        train_dataset=examples,
        processing_class=tokenizer,
        peft_config=lora(model_config, "SEQ_CLS"),
    )

    # Train
    run.train(trainer)
    if not run.is_main:
        return
    del trainer
    clear_device_cache(garbage_collection=True)  # makes room for the model as it was saved

    # Save, with the scale of the scores
    model = load_merged(run.staging, "SEQ_CLS", tokenizer, model_config).eval().to(device())
    chosen = [prompt + ids for prompt, ids in zip(held_out["prompt_ids"], held_out["chosen_ids"], strict=True)]
    chosen = score(model, chosen, args.per_device_eval_batch_size, progress="Scale of the scores")
    model.config.reward_mean, model.config.reward_std = chosen.mean().item(), chosen.std().item()
    run.publish(model)


if __name__ == "__main__":
    main()
