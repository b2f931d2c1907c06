"""Optimise the SFT model against the reward model, with TRL's PPOTrainer, corrected.

    make ppo PROFILE=gpt2
    python recipes/ppo.py --config configs/gpt2.yaml --kl_strength 0.1

The value model starts from the reward model. What is corrected, and why: rlhf_trl/ppo.py.
"""

from rlhf_trl.cli import check_launch, cli, parse


@cli
def main() -> None:
    check_launch()
    task, data_config, model_config, kl_config, _, args = parse("ppo", __doc__)

    from rlhf_trl.frame_loading import start_frame
    from rlhf_trl.models import check_context, check_positions, load_options, load_stacked, load_start, lora
    from rlhf_trl.ppo import CorrectedPPOTrainer, check_batches, value_model_of
    from rlhf_trl.rewards import Reward, load_reward_model
    from rlhf_trl.run import Run
    from rlhf_trl.tokens import build_dataset

    # Load
    frame = start_frame(model_config, args)
    check_context(model_config, data_config.max_prompt_tokens, args.response_length)
    prompts = build_dataset(data_config, "policy", frame, args.seed)
    check_batches(args, len(prompts))
    options = load_options(model_config)
    reward_model, read_as = load_reward_model(args.reward_model_path, data_config, args.seed, frame, **options)
    longest = data_config.max_prompt_tokens, args.response_length
    check_positions(reward_model.config, args.reward_model_path, *longest)

    # Build: with LoRA the reference is the policy with its adapter off, and the value model an adapter on the reward
    # model; else both are copies
    configs = data_config, model_config, kl_config
    with Run(task, args, *configs, frame=frame, data=prompts) as run:
        trainer = CorrectedPPOTrainer(
            args=args,
            frame=frame,
            model=load_start(model_config, "CAUSAL_LM", frame),
            ref_model=None,
            reward=Reward(
                reward_model, frame, read_as.rest, args.missing_eos_penalty, args.local_rollout_forward_batch_size
            ),
            value_model=value_model_of(reward_model, lora(model_config, "SEQ_CLS")),
            train_dataset=prompts.select_columns(["prompt_ids"]).rename_column("prompt_ids", "input_ids"),
            peft_config=lora(model_config, "CAUSAL_LM"),
        )

        # Train
        run.train(trainer)
    run.publish(load_stacked(run.staging, frame, model_config))


if __name__ == "__main__":
    main()
