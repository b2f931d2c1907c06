"""Optimise the SFT model directly on the preference pairs, with TRL's DPOTrainer.

    make dpo PROFILE=gpt2
    python recipes/dpo.py --config configs/gpt2.yaml --kl_strength 0.1

It trains on the pairs that the reward model was trained on: the preference information that PPO and
GRPO receive through the reward model. The reward model itself only lends the scale that makes `beta` of `kl_strength`;
with `--beta` it is not needed.
"""

from rlhf_trl.cli import cli, parse


@cli
def main() -> None:
    task, data_config, model_config, kl_config, args = parse("dpo", __doc__)

    from datasets import DatasetDict

    from rlhf_trl.dpo import CorrectedDPOTrainer
    from rlhf_trl.frame_loading import start_frame
    from rlhf_trl.models import check_context, load_options, load_stacked, load_start, lora
    from rlhf_trl.rewards import reward_std
    from rlhf_trl.run import Run
    from rlhf_trl.tokens import build_dataset

    args.max_length = None  # the data config bounds the lengths; nothing is cut

    # Load
    frame = start_frame(model_config, args)
    check_context(model_config, data_config.max_prompt_tokens, data_config.max_completion_tokens)
    pairs = DatasetDict(train=build_dataset(data_config, "reward", frame, args.seed))
    if args.do_eval:
        pairs["validation"] = build_dataset(data_config, "validation", frame, args.seed)
    rows = pairs.select_columns(["prompt_ids", "chosen_ids", "rejected_ids", "length"])
    if args.train_sampling_strategy != "sequential":
        rows = rows.sort("length")  # less padding for the reference, which takes them in their order

    # Build: the log-probabilities under the reference, which is the model as it is now, are computed before training
    if kl_config.kl_strength is not None:
        std = reward_std(kl_config.reward_model_path, data_config, args.seed, **load_options(model_config))
        args.beta = kl_config.kl_strength * std
    configs = data_config, model_config, kl_config
    with Run(task, args, *configs, frame=frame, data=pairs["train"]) as run:
        trainer = CorrectedDPOTrainer(
            model=load_start(model_config, "CAUSAL_LM", frame),
            args=args,
            train_dataset=rows["train"],
            eval_dataset=rows.get("validation"),
            processing_class=frame.tokenizer,
            peft_config=lora(model_config, "CAUSAL_LM"),
        )

        # Train
        run.train(trainer)
    run.publish(load_stacked(run.staging, frame, model_config))


if __name__ == "__main__":
    main()
