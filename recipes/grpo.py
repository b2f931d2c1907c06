"""Optimise the SFT model against the reward model, with TRL's GRPOTrainer.

make grpo PROFILE=gpt2
python recipes/grpo.py --config configs/gpt2.yaml --num_generations 16
"""

from rlhf_trl.cli import cli, parse


@cli
def main() -> None:
    task, data_config, model_config, reward_config, kl_config, args = parse("grpo", __doc__)

    from rlhf_trl.frame_loading import start_frame
    from rlhf_trl.grpo import CorrectedGRPOTrainer, check_batches
    from rlhf_trl.models import check_context, check_positions, device, load_options, load_stacked, load_start, lora
    from rlhf_trl.rewards import Reward, load_reward_model
    from rlhf_trl.run import Run
    from rlhf_trl.tokens import build_dataset

    # Load
    frame = start_frame(model_config, args)
    check_context(model_config, data_config.max_prompt_tokens, args.max_completion_length)
    prompts = build_dataset(data_config, "policy", frame, args.seed)
    check_batches(args, len(prompts))
    source, options = reward_config.reward_model_path, load_options(model_config)
    reward_model, read_as = load_reward_model(source, data_config, args.seed, frame, **options)
    check_positions(reward_model.config, source, data_config.max_prompt_tokens, args.max_completion_length)
    reward_model.to(device())

    # Build
    configs = data_config, model_config, reward_config, kl_config
    penalty, batch_size = reward_config.missing_eos_penalty, args.per_device_train_batch_size
    with Run(task, args, *configs, frame=frame, data=prompts) as run:
        trainer = CorrectedGRPOTrainer(
            model=load_start(model_config, "CAUSAL_LM", frame),
            reward=Reward(reward_model, frame, read_as.rest, penalty, batch_size),
            args=args,
            train_dataset=prompts.select_columns(["prompt"]),
            frame=frame,
            peft_config=lora(model_config, "CAUSAL_LM"),
        )

        # Train
        run.train(trainer)
    run.publish(load_stacked(run.staging, frame, model_config))


if __name__ == "__main__":
    main()
