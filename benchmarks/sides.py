"""The sides of what `benchmarks/speed.py` compares: what each does, and what is measured of it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler, Sampler
from worlds import World, options, read_config

from eval.config import JudgeConfig
from eval.judging.client import JudgeClient
from eval.judging.requests import Request
from eval.judging.transcript import Transcript, ask_all
from eval.kl import log_probabilities
from eval.samples import sample
from rlhf_trl.batching import LengthGroupedSampler, batches
from rlhf_trl.errors import UserError
from rlhf_trl.files import write_json, write_jsonl
from rlhf_trl.models import device, load_policy
from rlhf_trl.rewards import load_raw, load_reward_model, score

# The settings that TRL's reward and DPO scripts are given; all others stay at TRL's defaults
SHARED = ("model_name_or_path", "output_dir", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
SHARED += ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate")
SHARED += ("lr_scheduler_type", "warmup_steps", "beta", "seed")
OURS, TRL, NO_CHECKPOINTING = "ours", "TRL", "TRL without gradient checkpointing"
# TRL's configs ask for 16 bits, which only accelerators have
PRECISION = {} if torch.accelerator.is_available() else {"use_cpu": True, "bf16": False}
DELAY = 0.3  # seconds in which the judge's server answers

# A process of its own, as a judge's server has
SERVER = f"""
from tests.judge_server import JudgeServer, always_first, slowly
server = JudgeServer(slowly({DELAY}, always_first))
print(server.url, flush=True)
server.serve_forever()
"""


Sides = dict[str, Callable[[Path], dict]]  # each makes a record, given a folder to work in


def turn(folder: Path, run: Callable[[Path], dict]) -> dict:
    """The record in a folder; if there is none yet, that of a run."""
    path = folder / "record.json"
    if not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(path, run(folder) | {"date": str(date.today())})
    return json.loads(path.read_text())


def timed(items: int, work: Callable[[], object]) -> dict:
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"items": items, "seconds": seconds, "speed": items / seconds}


def trainings(recipe: str, *others: str) -> Callable[[World], Sides]:
    def sides(world: World) -> Sides:
        if recipe in ("ppo", "grpo"):
            make_reward_model(world)
        return {side: partial(train, recipe, world, side) for side in (OURS, *others)}

    return sides


def make_reward_model(world: World) -> None:
    """Take the turn that leaves the world's reward model, if it is not there yet."""
    if not world.reward_model.exists():
        turn(world.reward_model.parent, partial(train, "reward", world, OURS))


def padding(world: World) -> Sides:
    pairs = world.rows("reward", "reward", sys.maxsize)
    replies = [[len(ids) for ids in pairs[f"{side}_ids"]] for side in ("chosen", "rejected")]
    lengths = np.array([len(ids) for ids in pairs["prompt_ids"]]) + np.array(replies)  # (2, pairs)

    def run(sampler: Sampler, _: Path) -> dict:
        found = []
        record = timed(len(pairs), lambda: found.extend(BatchSampler(sampler, 8, drop_last=False)))
        return record | {"share": lengths.sum() / sum(2 * len(batch) * lengths[:, batch].max() for batch in found)}

    generator = torch.Generator().manual_seed(0)
    return {
        OURS: partial(run, LengthGroupedSampler(lengths.max(0).tolist(), 8, seed=0)),
        "random batches": partial(run, RandomSampler(pairs, generator=generator)),
    }


def profiles(world: World) -> Sides:
    return {recipe: partial(train, recipe, world, OURS, flags=("--profile",)) for recipe in ("reward", "dpo")}


def train(recipe: str, world: World, side: str, folder: Path, flags: tuple[str, ...] = ()) -> dict:
    """Train in a process of its own, with cold caches; the model is left in `folder`, named as the recipe."""
    log, figures = folder / "log.txt", folder / "figures.json"
    command = [sys.executable, "benchmarks/plain.py", *flags, figures, *training_command(recipe, world, side, folder)]
    with tempfile.TemporaryDirectory() as cache, log.open("w") as output:
        environment = os.environ | {"HF_DATASETS_CACHE": cache}
        start = time.perf_counter()
        code = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
        seconds = time.perf_counter() - start
    if code:
        raise UserError(f"{recipe}, {side}: the training failed; see {log}")
    for checkpoint in (folder / recipe).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    record = json.loads(figures.read_text()) | {"seconds": seconds}
    if recipe in ("sft", "reward", "dpo"):
        record["share"] = record["tokens"] / record["positions"]
        record["efficiency"] = record["share"] / passes(recipe, world, side)
    elif side != OURS:  # TRL takes the scores as the reward model gives them
        scale = json.loads((world.reward_model / "config.json").read_text())
        record["reward"] = (record["reward"] - scale["reward_mean"]) / scale["reward_std"]
    return record | {"speed": record.get("tokens", record.get("episodes")) / record["training"]}


def passes(recipe: str, world: World, side: str) -> int:
    """Arithmetic of a training step, in forward passes: the backward pass counts for two of them, with LoRA for one, as
    frozen weights have no gradients; checkpointing adds one, and DPO's reference one."""
    backward = 1 if read_config(world.profile, recipe).get("use_peft") else 2
    return 1 + backward + (side == TRL) + (recipe == "dpo")


def training_command(recipe: str, world: World, side: str, folder: Path) -> list[str]:
    """What `benchmarks/plain.py` is to run."""
    settings = world.settings(recipe) | {"output_dir": str(folder / recipe)}
    config = ["--config", f"configs/{world.profile}/{recipe}.yaml"]
    if side == OURS:
        return [f"recipes/{recipe}.py", *config, *options(settings)]
    if recipe in ("ppo", "grpo"):
        return [recipe, *config, *options(settings | PRECISION)]
    pairs = world.rows(recipe, "reward").select_columns(["prompt", "chosen", "rejected"])
    write_jsonl(folder / "pairs" / "train.jsonl", list(pairs))
    settings = read_config(world.profile, recipe) | settings
    settings = PRECISION | {name: settings[name] for name in SHARED if name in settings}
    settings |= {"dataset_name": folder / "pairs", "gradient_checkpointing": side != NO_CHECKPOINTING}
    settings |= {"lora_task_type": "SEQ_CLS"} if recipe == "reward" else {}
    return [str(files("trl") / "scripts" / f"{recipe}.py"), *options(settings)]


def reward_margins(world: World, trained: Path) -> np.ndarray:
    """Score of the chosen reply minus that of the rejected one, shape (pairs,)."""
    model = load_raw(str(trained), world.frame, dtype="float32").to(device())
    chosen, rejected = (
        score(model, [prompt + reply for prompt, reply in world.held_out_ids(side)]) for side in ("chosen", "rejected")
    )
    return (chosen - rejected).numpy()


def implicit_margins(world: World, trained: Path) -> np.ndarray:
    """log pi - log pi_ref of the chosen reply minus that of the rejected one, shape (pairs,)."""
    return log_margins(world, trained) - log_margins(world, world.policy)


@cache
def log_margins(world: World, source: Path) -> np.ndarray:
    """Log-probability of the chosen reply minus that of the rejected one, shape (pairs,)."""
    model = load_policy(str(source), world.frame.tokenizer, "float32").to(device())
    logps = {}
    for side in ("chosen", "rejected"):
        ids = world.held_out_ids(side)
        parts = [log_probabilities(model, *zip(*ids[i : i + 8], strict=True)) for i in range(0, len(ids), 8)]
        logps[side] = np.concatenate(parts)
    return logps["chosen"] - logps["rejected"]


def sampling(world: World) -> Sides:
    model = load_policy(str(world.policy), world.frame.tokenizer, "float32").to(device())
    prompts = list(world.rows("ppo", "eval", world.prompts)["prompt_ids"])

    def run(indexes: list[list[int]], _: Path) -> dict:
        def work() -> None:
            for batch in indexes:
                sample(model, world.frame, [prompts[i] for i in batch], world.max_new_tokens, seed=0)

        return timed(len(prompts), work)

    lengths = [len(ids) for ids in prompts]
    return {
        OURS: partial(run, list(batches(lengths, world.batch_size))),
        "one prompt at a time": partial(run, in_order(len(prompts), 1)),
        "batches of as many, as they come": partial(run, in_order(len(prompts), world.batch_size)),
    }


def in_order(number: int, size: int) -> list[list[int]]:
    """Indexes in batches as they come."""
    return [list(range(start, min(start + size, number))) for start in range(0, number, size)]


def scoring(world: World) -> Sides:
    make_reward_model(world)
    model = load_reward_model(str(world.reward_model), world.data("reward"), seed=0)[0].to(device())
    sequences = [prompt + reply for side in ("chosen", "rejected") for prompt, reply in world.held_out_ids(side)]

    def run(indexes: list[list[int]], _: Path) -> dict:
        def work() -> None:
            for batch in indexes:
                score(model, [sequences[i] for i in batch], world.batch_size)

        return timed(len(sequences), work)

    return {
        OURS: partial(run, [list(range(len(sequences)))]),  # which it sorts itself
        "one reply at a time": partial(run, in_order(len(sequences), 1)),
    }


def judging(_: World) -> Sides:
    def ask(number: int, concurrency: int, folder: Path) -> dict:
        requests = [Request(str(i), "a", "b", i, 0, "ab", f"Request {i}") for i in range(number)]
        transcript = Transcript(folder / "transcript.jsonl")
        with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline().strip()
                client = JudgeClient(JudgeConfig(base_url=url, concurrency=concurrency), key="")
                return timed(number, lambda: asyncio.run(ask_all(client, requests, transcript)))
            finally:
                process.terminate()

    return {OURS: partial(ask, 400, JudgeConfig.concurrency), "one request at a time": partial(ask, 40, 1)}


def starting(_: World) -> Sides:
    def start(command: str, code: int, _: Path) -> dict:
        program, *words = command.split()

        def run() -> None:
            done = subprocess.run([Path(sys.executable).with_name(program), *words], capture_output=True)
            if done.returncode != code:
                raise UserError(f"{command} ended with {done.returncode}, not with {code}")

        return timed(1, run)

    codes = {f"python recipes/{recipe}.py --help": 0 for recipe in ("sft", "reward", "ppo", "grpo", "dpo")}
    codes |= {"python -m eval --help": 0, "python recipes/dpo.py --learning_rat 1": 2, "trl dpo --help": 0}
    return {command: partial(start, command, code) for command, code in codes.items()}
