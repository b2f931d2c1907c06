"""Who takes part in the comparisons of `benchmarks/speed.py`: what each contestant does, and what is measured of it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from setups import Setup, command
from torch.utils.data import BatchSampler, RandomSampler, Sampler

from eval import kl
from eval.analysis.calibration import accuracy
from eval.config import JudgeConfig
from eval.judging.client import JudgeClient
from eval.judging.requests import Request
from eval.judging.transcript import Transcript, ask_all
from eval.samples import sample
from eval.score import in_batches
from rlhf_trl.batching import LengthGroupedSampler, batches
from rlhf_trl.config import RECIPES
from rlhf_trl.errors import UserError
from rlhf_trl.files import write_json, write_jsonl
from rlhf_trl.models import device, load_policy
from rlhf_trl.rewards import load_raw, score

Contestants = dict[str, Callable[[Path], dict]]  # each gives its figures, by their titles, given a folder to work in

OURS, TRL, NO_CHECKPOINTING = "ours", "TRL", "TRL without gradient checkpointing"
# The settings that TRL's reward and DPO scripts are given; all others stay at TRL's defaults
SHARED = ("model_name_or_path", "output_dir", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
SHARED += ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate")
SHARED += ("lr_scheduler_type", "warmup_steps", "beta", "seed")
# TRL's configs ask for 16 bits, which only accelerators have
PRECISION = {} if torch.accelerator.is_available() else {"use_cpu": True, "bf16": False}
SIDES = ("chosen", "rejected")
DELAY = 0.3  # seconds in which the judge's server answers

# Run as a process of its own, as a judge's server is
SERVER = f"""
from tests.judge_server import JudgeServer, always_first, slowly
server = JudgeServer(slowly({DELAY}, always_first))
print(server.url, flush=True)
server.serve_forever()
"""


def recorded(folder: Path, run: Callable[[Path], dict]) -> dict:
    """The figures that lie in a folder; if there are none yet, those of a run."""
    path = folder / "figures.json"
    if not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(path, run(folder))
    return json.loads(path.read_text())


def trainings(recipe: str, *others: str) -> Callable[[Setup], Contestants]:
    return lambda setup: {name: partial(train, recipe, setup, name) for name in (OURS, *others)}


def profiles(setup: Setup) -> Contestants:
    def run(recipe: str, folder: Path) -> dict:
        figures = train(recipe, setup, OURS, folder, "--profile")
        return {name: figures[name] for name in ("matrix products", "attention", "other operators")}

    return {recipe: partial(run, recipe) for recipe in ("reward", "dpo")}


def train(recipe: str, setup: Setup, contestant: str, folder: Path, *flags: str) -> dict:
    """Train in a process of its own, with cold caches; the model is left in `folder`, named as the recipe."""
    log, measured, trained = folder / "log.txt", folder / "measured.json", folder / recipe
    script, settings = training(recipe, setup, contestant, folder)
    words = [*flags, str(measured), *command(script, settings | {"output_dir": str(trained)}, folder / "config.yaml")]
    with tempfile.TemporaryDirectory() as cache, log.open("w") as output:
        environment, streams = os.environ | {"HF_DATASETS_CACHE": cache}, {"stdout": output, "stderr": output}
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "benchmarks/measured.py", *words], env=environment, **streams).returncode
        seconds = time.perf_counter() - start
    if code:
        raise UserError(f"{recipe}, {contestant}: the training failed; see {log}")
    for checkpoint in trained.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    figures = {"whole command (s)": seconds} | json.loads(measured.read_text())
    if recipe in ("ppo", "grpo"):
        figures["episodes a second"] = figures["episodes"] / figures["training (s)"]
        if contestant != OURS:  # TRL takes the scores as the reward model gives them
            scale = json.loads((setup.reward_model / "config.json").read_text())
            figures["last reward"] = (figures["last reward"] - scale["reward_mean"]) / scale["reward_std"]
        return figures
    figures["useful tokens a second"] = figures["tokens"] / figures["training (s)"]
    figures["useful share"] = figures["tokens"] / figures["positions"]
    # A backward pass counts for two forward passes, with LoRA for one, as frozen weights have no gradients;
    # checkpointing adds one, and DPO's reference one
    passes = 1 + (1 if setup.settings(recipe).get("use_peft") else 2) + (contestant == TRL) + (recipe == "dpo")
    figures["useful share a pass"] = figures["useful share"] / passes
    if recipe != "sft":
        figures["held-out accuracy"] = held_out_accuracy(recipe, setup, trained)
    return figures


def training(recipe: str, setup: Setup, contestant: str, folder: Path) -> tuple[str, dict]:
    """The script that `benchmarks/measured.py` is to run, and its settings."""
    settings = setup.settings(recipe)
    if contestant == OURS:
        return f"recipes/{recipe}.py", settings
    if recipe in ("ppo", "grpo"):
        return recipe, settings
    pairs = setup.rows(recipe, "reward").select_columns(["prompt", "chosen", "rejected"])
    write_jsonl(folder / "pairs" / "train.jsonl", list(pairs))
    settings = PRECISION | {name: settings[name] for name in SHARED if name in settings}
    settings |= {"dataset_name": str(folder / "pairs"), "gradient_checkpointing": contestant != NO_CHECKPOINTING}
    settings |= {"lora_task_type": "SEQ_CLS"} if recipe == "reward" else {}
    return str(files("trl") / "scripts" / f"{recipe}.py"), settings


def held_out_accuracy(recipe: str, setup: Setup, trained: Path) -> str:
    """Of a reward model's scores or of DPO's implicit reward, with its interval."""
    pairs, tokenizer = setup.rows("reward", "eval"), setup.frame.tokenizer
    rows = [{"prompt": row["prompt"], "completion_ids": row[f"{side}_ids"]} for side in SIDES for row in pairs]

    def log_probabilities(source: Path) -> np.ndarray:
        model = load_policy(str(source), tokenizer, "float32").to(device())
        return np.array(in_batches(partial(kl.log_probabilities, model), setup.frame, 8, None, rows))

    if recipe == "reward":
        rewards = score(load_raw(str(trained), setup.frame, dtype="float32").to(device()), sequences(pairs)).numpy()
    else:
        rewards = log_probabilities(trained) - log_probabilities(setup.policy)
    chosen, rejected = np.split(rewards, 2)
    found = accuracy(chosen - rejected)
    return "{:.3f} [{:.3f}, {:.3f}]".format(found["accuracy"], *found["ci"])


def sequences(pairs: Dataset) -> list[list[int]]:
    """Ids of the pairs' prompts with their chosen replies, and then with their rejected ones."""
    return [row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES for row in pairs]


def padding(setup: Setup) -> Contestants:
    pairs = setup.rows("reward", "reward", sys.maxsize)
    lengths = np.array([len(ids) for ids in sequences(pairs)]).reshape(2, -1)

    def run(sampler: Sampler, _: Path) -> dict:
        positions = sum(2 * len(rows) * lengths[:, rows].max() for rows in BatchSampler(sampler, 8, drop_last=False))
        return {"pairs": len(pairs), "useful share": float(lengths.sum() / positions)}

    generator = torch.Generator().manual_seed(0)
    return {
        OURS: partial(run, LengthGroupedSampler(lengths.max(0).tolist(), 8, seed=0)),
        "random batches": partial(run, RandomSampler(pairs, generator=generator)),
    }


def loops(items: list, batches: dict[str, list[list[int]]], work: Callable[[list], object]) -> Contestants:
    """Contestants that do the same work on the same items, each in batches (of indexes) of its own."""

    def run(indexes: list[list[int]], _: Path) -> dict:
        return timed(len(items), lambda: [work([items[i] for i in batch]) for batch in indexes])

    return {name: partial(run, indexes) for name, indexes in batches.items()}


def timed(items: int, work: Callable[[], object]) -> dict:
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"items": items, "seconds": seconds, "items a second": items / seconds}


def in_order(items: list, size: int) -> list[list[int]]:
    """Indexes in batches as they come."""
    return list(BatchSampler(range(len(items)), size, drop_last=False))


def sampling(setup: Setup) -> Contestants:
    model = load_policy(str(setup.policy), setup.frame.tokenizer, "float32").to(device())
    settings = setup.settings("samples")
    size, prompts = settings["batch_size"], list(setup.rows("samples", "eval", settings["prompts"])["prompt_ids"])
    contestants = {
        OURS: list(batches([len(ids) for ids in prompts], size)),
        "one prompt at a time": in_order(prompts, 1),
        "batches of as many, as they come": in_order(prompts, size),
    }
    return loops(prompts, contestants, lambda ids: sample(model, setup.frame, ids, settings["max_new_tokens"], seed=0))


def scoring(setup: Setup) -> Contestants:
    model = load_raw(str(setup.reward_model), setup.frame, dtype="float32").to(device())
    replies, size = sequences(setup.rows("reward", "eval")), setup.settings("samples")["batch_size"]
    # Ours sorts by length what it is given at once
    contestants = {OURS: in_order(replies, len(replies)), "one reply at a time": in_order(replies, 1)}
    return loops(replies, contestants, lambda ids: score(model, ids, size))


def judging(_: Setup) -> Contestants:
    def ask(number: int, concurrency: int, folder: Path) -> dict:
        requests = [Request(str(i), "a", "b", i, 0, "ab", f"Request {i}") for i in range(number)]
        transcript = Transcript(folder / "transcript.jsonl")
        with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline().strip()
                client = JudgeClient(JudgeConfig(output_dir=str(folder), base_url=url, concurrency=concurrency), key="")
                return timed(number, lambda: asyncio.run(ask_all(client, requests, transcript)))
            finally:
                process.terminate()

    return {OURS: partial(ask, 400, JudgeConfig.concurrency), "one request at a time": partial(ask, 40, 1)}


def starting(_: Setup) -> Contestants:
    def start(words: str, code: int, _: Path) -> dict:
        program, *options = words.split()
        begun = time.perf_counter()
        done = subprocess.run([Path(sys.executable).with_name(program), *options], capture_output=True)
        if done.returncode != code:
            raise UserError(f"{words} ended with {done.returncode}, not with {code}")
        return {"seconds": time.perf_counter() - begun}

    codes = {f"python recipes/{recipe}.py --help": 0 for recipe in RECIPES}
    codes |= {"python -m eval --help": 0, "python recipes/dpo.py --learning_rat 1": 2, "trl dpo --help": 0}
    return {words: partial(start, words, code) for words, code in codes.items()}


COMPARISONS = {
    "reward": trainings("reward", TRL, NO_CHECKPOINTING),
    "dpo": trainings("dpo", TRL, NO_CHECKPOINTING),
    "profile": profiles,
    "padding": padding,
    "sft": trainings("sft"),
    "ppo": trainings("ppo", TRL),
    "grpo": trainings("grpo", TRL),
    "sampling": sampling,
    "scoring": scoring,
    "judge": judging,
    "start": starting,
}
