"""Optimise the SFT model against the reward model, with TRL's GRPOTrainer.

make grpo PROFILE=gpt2
python recipes/grpo.py --config configs/gpt2/grpo.yaml --num_generations 16
"""

from rlhf_trl.config import RECIPES, parse
from rlhf_trl.errors import cli


@cli
def main() -> None:
    data_config, model_config, reward_config, kl_config, run_config, args = parse(__doc__, *RECIPES["grpo"])

    from trl import GRPOTrainer

    from rlhf_trl.batching import LengthGroupedSampler
    from rlhf_trl.data import build_dataset, load_tokenizer
    from rlhf_trl.models import check_context, device, load_causal_lm, load_options, lora
    from rlhf_trl.rewards import grpo_reward, load_reward_model
    from rlhf_trl.runs import Run

    # Load
    tokenizer = load_tokenizer(model_config.model_name_or_path)
    reward_model = load_reward_model(reward_config.reward_model_path, **load_options(model_config))
    check_context(model_config, data_config.max_prompt_tokens, args.max_completion_length)
    prompts = build_dataset(data_config, "policy", tokenizer, args.seed)
    rows = prompts.select_columns(["prompt"])
    if args.train_sampling_strategy == "group_by_length":  # which TRL's sampler cannot do, but it can keep an order
        lengths = [len(ids) for ids in prompts["prompt_ids"]]
        batch_size = args.generation_batch_size // args.num_generations
        rows = rows.select(list(LengthGroupedSampler(lengths, batch_size, args.seed)))
        args.shuffle_dataset = False

    # Build
    parents = {"model": model_config.model_name_or_path, "reward_model": reward_config.reward_model_path}
    configs = data_config, model_config, reward_config, kl_config
    run = Run(args, *configs, data=prompts, parents=parents, fresh=run_config.fresh)
    trainer = GRPOTrainer(
        model=load_causal_lm(model_config, tokenizer),
        reward_funcs=grpo_reward(
            reward_model.to(device()), tokenizer, reward_config.missing_eos_penalty, args.per_device_train_batch_size
        ),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora(model_config, "CAUSAL_LM"),
    )

    # Train and save
    run.train(trainer)
    run.publish()


if __name__ == "__main__":
    main()
