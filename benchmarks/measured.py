"""One training in a process of its own, measured: any script, or TRL's PPO or GRPO as one writes them without us.

    python benchmarks/measured.py FIGURES.json recipes/dpo.py --config configs/demo/dpo.yaml
    python benchmarks/measured.py --profile FIGURES.json ppo --config ppo.yaml

`benchmarks/speed.py` runs all trainings through this. The figures are of the trainer's loop and of DPO's pass under the
reference; `tokens` are those of the batches without padding, `positions` with it, and `last reward` is the mean of the
replies in the last quarter of the updates. With --profile there are shares of the time by kind of operator, too.
"""

import argparse
import json
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path

import torch
from setups import parsed
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer
from trl import DPOTrainer, GRPOTrainer, get_peft_config
from trl.experimental.ppo import PPOTrainer

from rlhf_trl.frame_loading import load_frame
from rlhf_trl.measure import peak_memory_mb
from rlhf_trl.tokens import build_dataset

figures: dict[str, float] = defaultdict(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("figures", type=Path)
    parser.add_argument("script")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    sys.argv = [args.script, *args.options]
    Trainer.train = timed(Trainer.train, summarise, args.profile)
    PPOTrainer.train = timed(PPOTrainer.train, summarise)
    DPOTrainer._precompute_ref_logps = timed(DPOTrainer._precompute_ref_logps)
    Trainer.training_step = counted(Trainer.training_step)
    if args.script in PLAIN:
        PLAIN[args.script](args.options)
    else:
        runpy.run_path(args.script, run_name="__main__")
    args.figures.write_text(json.dumps(figures | {"peak memory (MB)": peak_memory_mb()}))


def timed(method: Callable, after: Callable[[Trainer], None] | None = None, profile: bool = False) -> Callable:
    """A trainer's method that adds its seconds to `figures`, and then what `after` tells of the trainer."""

    @wraps(method)
    def wrapper(self, *args, **options):
        start = time.perf_counter()
        with torch.profiler.profile() if profile else nullcontext() as profiler:
            result = method(self, *args, **options)
            seconds = time.perf_counter() - start
        figures["training (s)"] += seconds
        for event in profiler.key_averages() if profile else ():
            if event.key.startswith("aten::"):
                kinds = {"matrix products": event.key.endswith("mm"), "attention": "attention" in event.key}
                kind = next((kind for kind, fits in kinds.items() if fits), "other operators")
                own = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
                figures[kind] += own / 1e6 / seconds
        if after:
            after(self)
        return result

    return wrapper


def counted(step: Callable) -> Callable:
    """`Trainer.training_step`, adding the tokens of its batches to `figures`; GRPO's are yet to be sampled."""

    @wraps(step)
    def wrapper(self, model, inputs, *args, **options):
        if "attention_mask" in inputs:
            figures["tokens"] += int(inputs["attention_mask"].sum())
            figures["positions"] += inputs["attention_mask"].numel()
        return step(self, model, inputs, *args, **options)

    return wrapper


def summarise(trainer: Trainer) -> None:
    """Add the optimizer's steps and, for PPO and GRPO, replies and reward."""
    args, state = trainer.args, trainer.state
    figures["optimizer steps"] = max(int(values["step"]) for values in trainer.optimizer.state.values())
    names = ("objective/scores", "reward")  # PPO's and GRPO's
    rewards = [row[name] for row in state.log_history for name in names if name in row]
    if rewards:
        last = rewards[-max(1, len(rewards) // 4) :]
        figures["last reward"] = sum(last) / len(last)
        figures["episodes"] = state.global_step * args.per_device_train_batch_size * args.gradient_accumulation_steps


def ppo(options: list[str]) -> None:
    """As TRL's examples/scripts/ppo/ppo.py has it, with what it needs to run at all: a pad token that is not eos, and
    prompts that fit."""
    data, model_config, *_, args = parsed("ppo", *options)
    frame, peft_config = load_frame(model_config.model_name_or_path), get_peft_config(model_config)
    policy = partial(AutoModelForCausalLM.from_pretrained, model_config.model_name_or_path, dtype=model_config.dtype)
    scorer = partial(
        AutoModelForSequenceClassification.from_pretrained, args.reward_model_path, dtype=model_config.dtype
    )
    prompts = build_dataset(data, "policy", frame, args.seed).select_columns(["prompt_ids"])
    trainer = PPOTrainer(
        args=args,
        processing_class=frame.tokenizer,
        model=policy(),
        ref_model=None if peft_config else policy(),
        reward_model=scorer(),
        value_model=scorer(),
        train_dataset=prompts.rename_column("prompt_ids", "input_ids"),
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(args.output_dir)


def grpo(options: list[str]) -> None:
    """As TRL's documentation has it, with the path of a reward model."""
    data, model_config, reward, *_, args = parsed("grpo", *options)
    prompts = build_dataset(data, "policy", load_frame(model_config.model_name_or_path), args.seed)
    args.model_init_kwargs = {"dtype": model_config.dtype}
    trainer = GRPOTrainer(
        model=model_config.model_name_or_path,
        reward_funcs=reward.reward_model_path,
        args=args,
        train_dataset=prompts.select_columns(["prompt"]),
        peft_config=get_peft_config(model_config),
    )
    trainer.train()
    trainer.save_model(args.output_dir)


PLAIN = {"ppo": ppo, "grpo": grpo}

if __name__ == "__main__":
    main()
