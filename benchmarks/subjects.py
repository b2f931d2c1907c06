"""What `benchmarks/speed.py` measures: the sides of each comparison, and the columns of its table."""

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
from typing import NamedTuple

import numpy as np
import torch
from worlds import World, options, read_config

from eval import judge, reward_model
from eval.config import JudgeConfig
from eval.files import write_json, write_jsonl
from eval.samples import log_probabilities, sample
from eval.server import Server
from rlhf_trl.batching import batches
from rlhf_trl.data import load_tokenizer
from rlhf_trl.errors import UserError
from rlhf_trl.models import device, load_policy
from rlhf_trl.rewards import load_reward_model, score

# The settings that TRL's reward and DPO scripts are given; all others stay at TRL's defaults
SHARED = ("model_name_or_path", "output_dir", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
SHARED += ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate")
SHARED += ("lr_scheduler_type", "warmup_steps", "beta", "seed")
OURS, TRL, NO_CHECKPOINTING = "ours", "TRL", "TRL without gradient checkpointing"
UNSORTED = "batches of as many, as they come"
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


class Subject(NamedTuple):
    """A section of the page. Its table has a row for each side in each world, ours first."""

    title: str
    note: str
    sides: Callable[[World], Sides]
    columns: dict[str, tuple[str, str]]  # title: figure of the record, its format
    ratios: dict[str, str]  # title: figure
    margins: Callable[[World, Path], np.ndarray] | None = None  # of the held-out pairs, by a trained model
    everywhere: bool = True  # or in the first world only, as no model takes part
    turns: int | None = None  # of each side, where they are not compared; else as many as are asked for


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
    if recipe in ("reward", "dpo"):
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
    model = reward_model.load(str(trained), load_tokenizer(str(world.policy)), "float32").to(device())
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
    model = load_policy(str(source), load_tokenizer(str(world.policy)), "float32").to(device())
    logps = {}
    for side in ("chosen", "rejected"):
        ids = world.held_out_ids(side)
        parts = [log_probabilities(model, *zip(*ids[i : i + 8], strict=True)) for i in range(0, len(ids), 8)]
        logps[side] = np.concatenate(parts)
    return logps["chosen"] - logps["rejected"]


def sampling(world: World) -> Sides:
    tokenizer = load_tokenizer(str(world.policy))
    model = load_policy(str(world.policy), tokenizer, "float32").to(device())
    prompts = list(world.rows("ppo", "eval", world.prompts)["prompt_ids"])

    def run(indexes: list[list[int]], _: Path) -> dict:
        def work() -> None:
            for batch in indexes:
                sample(model, tokenizer, [prompts[i] for i in batch], world.max_new_tokens, seed=0)

        return timed(len(prompts), work)

    lengths = [len(ids) for ids in prompts]
    return {
        OURS: partial(run, list(batches(lengths, world.batch_size))),
        "one prompt at a time": partial(run, in_order(len(prompts), 1)),
        UNSORTED: partial(run, in_order(len(prompts), world.batch_size)),
    }


def in_order(number: int, size: int) -> list[list[int]]:
    """Indexes in batches as they come."""
    return [list(range(start, min(start + size, number))) for start in range(0, number, size)]


def scoring(world: World) -> Sides:
    make_reward_model(world)
    model = load_reward_model(str(world.reward_model)).to(device())
    sequences = [prompt + reply for side in ("chosen", "rejected") for prompt, reply in world.held_out_ids(side)]

    def run(indexes: list[list[int]], _: Path) -> dict:
        def work() -> None:
            for batch in indexes:
                score(model, [sequences[i] for i in batch], world.batch_size)

        return timed(len(sequences), work)

    return {
        OURS: partial(run, [list(range(len(sequences)))]),  # which it sorts itself
        "one reply at a time": partial(run, in_order(len(sequences), 1)),
        UNSORTED: partial(run, in_order(len(sequences), world.batch_size)),
    }


def judging(_: World) -> Sides:
    def ask(number: int, concurrency: int, folder: Path) -> dict:
        requests = [judge.Request(str(i), "a", "b", i, "ab", f"Request {i}") for i in range(number)]
        transcript = judge.Transcript(folder / "transcript.jsonl")
        with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline().strip()
                client = Server(JudgeConfig(base_url=url, concurrency=concurrency), key="")
                return timed(number, lambda: asyncio.run(judge.ask_all(client, requests, transcript)))
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


TRAINING = {"whole command (s)": ("seconds", ".1f"), "training (s)": ("training", ".1f")}
TOKENS = {"useful tokens a second": ("speed", ".0f"), "useful share": ("share", ".2f")}
EPISODES = {"episodes a second": ("speed", ".2f"), "last reward": ("reward", ".2f")}
COST = {"optimizer steps": ("steps", ".0f"), "peak memory (MB)": ("memory", ".0f")}
LOOP = {"items": ("items", ".0f"), "seconds": ("seconds", ".2f"), "items a second": ("speed", ".1f")}
FASTER = {"speed, ours / this": "speed"}
LIMIT = {"limit by arithmetic": "efficiency"}
LARGER = {"memory, ours / this": "memory"}

SUBJECTS = {
    "reward": Subject(
        "Reward model",
        "`recipes/reward.py` and the script behind `trl reward`, on the same pairs and with the same batches, epochs, "
        "learning rate, LoRA, precision and seed. All else is each side's default; as TRL's has gradient checkpointing "
        "on, a third side has it off, in one turn. Useful tokens are those that are not padding. The limit is what "
        "less padding and no checkpointing can gain where time goes with arithmetic. Our whole command includes the "
        "scale of the scores, on up to 256 more replies. Accuracies are on held-out pairs, with Wilson's 95% interval.",
        trainings("reward", TRL, NO_CHECKPOINTING),
        TRAINING | TOKENS | COST,
        FASTER | LIMIT | LARGER,
        reward_margins,
    ),
    "dpo": Subject(
        "DPO",
        "As above, with `recipes/dpo.py` and the script behind `trl dpo`. Our training time includes that for the "
        "log-probabilities under the reference. The accuracy is that of DPO's implicit reward.",
        trainings("dpo", TRL, NO_CHECKPOINTING),
        TRAINING | TOKENS | COST,
        FASTER | LIMIT | LARGER,
        implicit_margins,
    ),
    "profile": Subject(
        "What reward and DPO training spend their time on",
        "Ours, with torch's profiler: shares of the time in the trainer's loop. What is left is Python's, and the "
        "profiler's own, which is large where operators are as small as the demo's.",
        profiles,
        {
            "matrix products": ("matmul", ".2f"),
            "attention": ("attention", ".2f"),
            "other operators": ("other", ".2f"),
        },
        {},
        turns=1,
    ),
    "ppo": Subject(
        "PPO",
        "`recipes/ppo.py` and TRL's `PPOTrainer` as its example uses it (`benchmarks/plain.py`), with the same config, "
        "prompts and models. `num_mini_batches` adds no optimizer steps to TRL's. Two things are spared. TRL collects "
        "garbage twice an update, which takes as long however small the model is, so that it counts most on the demo; "
        "ours leaves the libraries' objects out of it. And with LoRA TRL trains the value model in full: a micro-batch "
        "costs it the arithmetic of 2 forward passes of the policy and 3 of the value model, ours 2 and 2. So on a "
        "larger model the limit is 1.25, and less with the sampling, which is the same. Rewards are means over the "
        "last quarter of the updates, in standard deviations of the reward model's scores.",
        trainings("ppo", TRL),
        TRAINING | EPISODES | COST,
        FASTER | LARGER,
    ),
    "grpo": Subject(
        "GRPO",
        "As above, with `recipes/grpo.py` and TRL's `GRPOTrainer`, which is given the path of the reward model. It "
        "scores replies without their eos, and no penalty is subtracted for a missing one: its reward is another one.",
        trainings("grpo", TRL),
        TRAINING | EPISODES | COST,
        FASTER | LARGER,
    ),
    "sampling": Subject(
        "Sampling",
        "Replies to held-out prompts of up to 64 tokens, as `make samples` draws them. To read a prompt takes as long "
        "in a batch as alone where, as on a CPU, arithmetic is the limit; what a batch saves is the weights, read anew "
        "for every token of every reply. So the ratio falls with longer prompts.",
        sampling,
        LOOP,
        FASTER,
    ),
    "scoring": Subject(
        "Scoring",
        "Both replies of held-out pairs, by the reward model. A reply is read in one pass, in which each weight is "
        "used for hundreds of tokens. So where arithmetic is the limit, as for a larger model on a CPU, a batch has "
        "nothing to save; it must only not pay for padding.",
        scoring,
        LOOP,
        FASTER,
    ),
    "judge": Subject(
        "Judge",
        f"Verdicts of a server on this machine that takes {DELAY} s for each, as `make judge` asks for them.",
        judging,
        LOOP,
        FASTER,
        everywhere=False,
    ),
    "start": Subject(
        "Start", "Medians of 5 starts.", starting, {"seconds": ("seconds", ".2f")}, {}, everywhere=False, turns=5
    ),
}
