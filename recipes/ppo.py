"""Optimise the SFT model against the reward model, with TRL's PPOTrainer, corrected.

    make ppo PROFILE=gpt2
    python recipes/ppo.py --config configs/gpt2/ppo.yaml --kl_strength 0.1

The value model starts from the reward model. What is corrected, and why: rlhf_trl/ppo.py.
"""

from rlhf_trl.config import RECIPES, check_launch, parse
from rlhf_trl.errors import cli


@cli
def main() -> None:
    check_launch()
    data_config, model_config, kl_config, run_config, args = parse(__doc__, *RECIPES["ppo"])

    from rlhf_trl.data import build_dataset, load_tokenizer
    from rlhf_trl.models import check_context, load_causal_lm, load_options, lora
    from rlhf_trl.ppo import CorrectedPPOTrainer, check_batches, value_model_of
    from rlhf_trl.rewards import load_reward_model
    from rlhf_trl.runs import Run

    # Load
    tokenizer = load_tokenizer(model_config.model_name_or_path)
    reward_model = load_reward_model(args.reward_model_path, **load_options(model_config))
    check_context(model_config, data_config.max_prompt_tokens, args.response_length)
    prompts = build_dataset(data_config, "policy", tokenizer, args.seed)
    check_batches(args, len(prompts))

    # Build: with LoRA the reference is the policy with its adapter off, and the value model an adapter on the reward
    # model; else both are copies
    parents = {"model": model_config.model_name_or_path, "reward_model": args.reward_model_path}
    run = Run(args, data_config, model_config, kl_config, data=prompts, parents=parents, fresh=run_config.fresh)
    trainer = CorrectedPPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=load_causal_lm(model_config, tokenizer),
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model_of(reward_model, lora(model_config, "SEQ_CLS")),
        train_dataset=prompts.select_columns(["prompt_ids"]).rename_column("prompt_ids", "input_ids"),
        peft_config=lora(model_config, "CAUSAL_LM"),
    )

    # Train and save
    run.train(trainer)
    run.publish()


if __name__ == "__main__":
    main()
