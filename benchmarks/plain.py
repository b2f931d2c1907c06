"""One training as a process of its own, measured: any script, or TRL's PPO or GRPO as one writes them without us.

    python benchmarks/plain.py RECORD.json recipes/dpo.py --config configs/demo/dpo.yaml
    python benchmarks/plain.py RECORD.json ppo --config configs/demo/ppo.yaml
    python benchmarks/plain.py --profile RECORD.json recipes/dpo.py --config configs/demo/dpo.yaml

`benchmarks/speed.py` runs both sides through this. What RECORD.json gets:
    training            seconds in the trainer's loop, and in DPO's pass for the log-probabilities under the reference
    tokens, positions   of the training's batches, without and with padding; none for PPO and GRPO
    steps               of the optimizer
    episodes, reward    replies sampled, and their mean reward in the last quarter of the updates; PPO and GRPO only
    memory              peak in MB: of the GPU where there is one, else resident memory of this process
    matmul, attention, other    with `--profile`: their shares of the time in the trainer's loop
"""

import argparse
import functools
import json
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, Trainer
from trl import DPOTrainer, GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config
from trl.experimental.ppo import PPOConfig, PPOTrainer

from rlhf_trl.config import DataConfig, RewardModelConfig
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.kl import COEFFICIENTS, KLConfig, set_coefficient
from rlhf_trl.measure import peak_memory_mb
from rlhf_trl.tokens import build_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("record", type=Path)
    parser.add_argument("script")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    sys.argv = [args.script, *args.options]
    figures = defaultdict(float)
    if args.profile:
        Trainer.train = profiled(Trainer.train, figures)
    Trainer.train = timed(Trainer.train, figures, summarise)
    PPOTrainer.train = timed(PPOTrainer.train, figures, summarise)
    DPOTrainer._precompute_ref_logps = timed(DPOTrainer._precompute_ref_logps, figures)
    Trainer.training_step = counted(Trainer.training_step, figures)
    if args.script in PLAIN:
        PLAIN[args.script]()
    else:
        runpy.run_path(args.script, run_name="__main__")
    args.record.write_text(json.dumps(figures | {"memory": peak_memory_mb()}))


def timed(method: Callable, figures: dict, after: Callable[[Trainer], dict] = lambda trainer: {}) -> Callable:
    """A trainer's method that adds its time to `figures`, and what `after` then tells of the trainer."""

    @functools.wraps(method)
    def wrapper(self, *args, **options):
        start = time.perf_counter()
        result = method(self, *args, **options)
        figures["training"] += time.perf_counter() - start
        figures.update(after(self))
        return result

    return wrapper


def profiled(method: Callable, figures: dict) -> Callable:
    """A trainer's method that leaves in `figures` the shares of its time that kinds of operators took."""

    @functools.wraps(method)
    def wrapper(self, *args, **options):
        start = time.perf_counter()
        with torch.profiler.profile() as profile:
            result = method(self, *args, **options)
            seconds = time.perf_counter() - start
        for event in profile.key_averages():
            if event.key.startswith("aten::"):
                product = event.key.endswith("mm")  # mm, bmm, addmm
                kind = "matmul" if product else "attention" if "attention" in event.key else "other"
                on_gpu = torch.cuda.is_available()
                time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
                figures[kind] += time_us / 1e6 / seconds
        return result

    return wrapper


def counted(step: Callable, figures: dict) -> Callable:
    """`Trainer.training_step`, adding the tokens of its batches to `figures`."""

    @functools.wraps(step)
    def wrapper(self, model, inputs, *args, **options):
        if "attention_mask" in inputs:  # GRPO's are yet to be sampled
            figures["tokens"] += int(inputs["attention_mask"].sum())
            figures["positions"] += inputs["attention_mask"].numel()
        return step(self, model, inputs, *args, **options)

    return wrapper


def summarise(trainer: Trainer) -> dict:
    """Optimizer steps and, of PPO and GRPO, replies and reward."""
    args, state = trainer.args, trainer.state
    summary = {"steps": max(int(values["step"]) for values in trainer.optimizer.state.values())}
    names = ("objective/scores", "reward")  # PPO's and GRPO's
    rewards = [row[name] for row in state.log_history for name in names if name in row]
    if rewards:
        last = rewards[-max(1, len(rewards) // 4) :]
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        summary |= {"episodes": state.global_step * batch, "reward": sum(last) / len(last)}
    return summary


def ppo() -> None:
    """As TRL's examples/scripts/ppo/ppo.py has it, with what it needs to run at all: a pad token that is not eos, and
    prompts that fit."""
    model_config, tokenizer, prompts, args = load(PPOConfig)
    peft_config = get_peft_config(model_config)

    def model(kind: type, path: str) -> PreTrainedModel:
        return kind.from_pretrained(path, dtype=model_config.dtype)

    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=model(AutoModelForCausalLM, model_config.model_name_or_path),
        ref_model=None if peft_config else model(AutoModelForCausalLM, model_config.model_name_or_path),
        reward_model=model(AutoModelForSequenceClassification, args.reward_model_path),
        value_model=model(AutoModelForSequenceClassification, args.reward_model_path),
        train_dataset=prompts.select_columns(["prompt_ids"]).rename_column("prompt_ids", "input_ids"),
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(args.output_dir)


def grpo() -> None:
    """As TRL's documentation has it, with the path of a reward model."""
    model_config, _, prompts, args, reward_config = load(GRPOConfig, RewardModelConfig)
    args.model_init_kwargs = {"dtype": model_config.dtype}
    trainer = GRPOTrainer(
        model=model_config.model_name_or_path,
        reward_funcs=reward_config.reward_model_path,
        args=args,
        train_dataset=prompts.select_columns(["prompt"]),
        peft_config=get_peft_config(model_config),
    )
    trainer.train()
    trainer.save_model(args.output_dir)


def load(*classes: type) -> tuple:
    """Model config, tokenizer, our prompts, and the options of `classes`, of which the first is for a trainer."""
    parser = TrlParser((DataConfig, ModelConfig, KLConfig, *classes))
    parser.set_defaults(**{COEFFICIENTS[classes[0].__name__]: None})  # the configs say it by `kl_strength`
    data_config, model_config, kl_config, args, *others = parser.parse_args_and_config()
    set_coefficient(kl_config, args, default=0.0)
    frame = load_frame(model_config.model_name_or_path)
    return model_config, frame.tokenizer, build_dataset(data_config, "policy", frame, args.seed), args, *others


PLAIN = {"ppo": ppo, "grpo": grpo}

if __name__ == "__main__":
    main()
