"""How fast this project is beside plain TRL, and its evaluation beside plain loops. Both sides do the same, in turns.

    make bench
    python benchmarks/speed.py runs/demo --model MODEL --dataset DATA --subjects reward dpo

The demo's folder has its sft and reward. With MODEL (a small chat model) and DATA (pairs in HH-RLHF's layout) all but
judge and start are measured on these, too. Each turn leaves a record in WORK and is not run again, unless sizes,
machine or versions changed or `--fresh` is given: after an interrupt the same command goes on. Writes OUTPUT.
"""

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import NamedTuple

import datasets
import numpy as np
import psutil
import torch
import transformers
import yaml
from jinja2 import Environment, StrictUndefined
from trl import ModelConfig

from eval import judge, reward_model
from eval.check import SPLITS, Step
from eval.config import JudgeConfig
from eval.files import replaced, write_atomically, write_json, write_jsonl
from eval.metrics import accuracy
from eval.samples import log_probabilities, sample
from eval.server import Server
from rlhf_trl.batching import batches
from rlhf_trl.config import RECIPES, DataConfig, parse
from rlhf_trl.data import build_dataset, load_tokenizer
from rlhf_trl.errors import UserError, check_writable, cli
from rlhf_trl.measure import machine, versions
from rlhf_trl.models import device, load_causal_lm, load_policy
from rlhf_trl.rewards import load_reward_model, score

# The settings that TRL's reward and DPO scripts are given; all others stay at TRL's defaults
SHARED = ("model_name_or_path", "output_dir", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
SHARED += ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate")
SHARED += ("lr_scheduler_type", "warmup_steps", "beta", "seed")
OURS, TRL, NO_CHECKPOINTING = "ours", "TRL", "TRL without gradient checkpointing"
# TRL's configs ask for 16 bits, which only accelerators have
PRECISION = {} if torch.accelerator.is_available() else {"use_cpu": True, "bf16": False}
DELAY = 0.3  # seconds in which the judge's server answers
STARTS = 5  # of each command

# A process of its own, as a judge's server has
SERVER = f"""
from tests.judge_server import JudgeServer, always_first, slowly
server = JudgeServer(slowly({DELAY}, always_first))
print(server.url, flush=True)
server.serve_forever()
"""

PAGE = """\
# Speed

This project beside plain TRL, and its evaluation beside plain loops. `benchmarks/speed.py` wrote this page from what it
measured:

```bash
{{ command }}
```

{{ dates | join(", ") }}; {{ ([machine.cpu] + machine.gpus) | join(", ") }}, threads: {{ machine.threads }};
{{ versions | join(", ") }}.

The sides took {{ turns }} turns each, in an order that was turned round every time, so that a drift of the machine
cancels. Figures are medians over a side's turns. "Ours / this" is the median of the ratios within the pairs of turns,
with the smallest and the largest; above 1, ours is faster, or takes more memory.
{% for subject, rows in tables %}

## {{ subject.title }}

{{ subject.note }}

{% for row in rows %}
| {{ row | join(" | ") }} |
{% if loop.first %}
|{{ "---|" * row | length }}
{% endif %}
{% endfor %}
{% endfor %}

## Memory, as estimated

What `make check` estimates for our sides above, before anything runs, and what they took at their peak.

{% for row in estimates %}
| {{ row | join(" | ") }} |
{% if loop.first %}
|{{ "---|" * row | length }}
{% endif %}
{% endfor %}

## Sizes

What differs from the profiles' configs, on both sides:

{% for world in worlds %}
{% for recipe, changes in world.changes.items() %}
- {{ world.name }}, {{ recipe }}:{% for item in changes.items() %} `{{ item | join(" ") }}`{{ "," if not loop.last }}\
{% endfor %}

{% endfor %}
{% endfor %}
"""


@dataclass(eq=False)
class World:
    """A model with its data, and the changes to its profile's configs that make it bearable for two slow cores."""

    name: str
    profile: str
    folder: Path  # for the records
    dataset: str
    policy: Path  # what every training starts from
    reward_model: Path
    changes: dict[str, dict]  # by recipe
    held_out: int | None  # pairs to test trained models on; None for all
    prompts: int  # to sample from
    batch_size: int  # of sampling and scoring
    max_new_tokens: int

    def settings(self, recipe: str) -> dict:
        """What differs from a recipe's config."""
        reward = {"reward_model_path": str(self.reward_model)} if recipe in ("ppo", "grpo") else {}
        models = {"model_name_or_path": str(self.policy)} | reward
        return {"dataset": self.dataset, "seed": 0} | models | self.changes[recipe]

    def rows(self, recipe: str, split: str, number: int | None = None) -> datasets.Dataset:
        """A recipe's rows of a split, or the first `number`."""
        settings = read_config(self.profile, recipe) | self.settings(recipe)
        config = DataConfig(**{part.name: settings[part.name] for part in fields(DataConfig) if part.name in settings})
        config = replace(config, max_rows=number or config.max_rows)
        with contextlib.redirect_stdout(io.StringIO()):
            return build_dataset(config, split, load_tokenizer(str(self.policy)), seed=0)

    def held_out_ids(self, side: str) -> list[tuple[list[int], list[int]]]:
        """Prompt and reply, `chosen` or `rejected`, of each held-out pair."""
        pairs = self.rows("reward", "eval", self.held_out)
        return list(zip(pairs["prompt_ids"], pairs[f"{side}_ids"], strict=True))


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


@cli
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--dataset")
    parser.add_argument("--pairs", type=int, default=48, help="pairs to train MODEL on")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--pairs_of_runs", type=int, default=3, help="turns of each side")
    parser.add_argument("--fresh", action="store_true", help="run all of it again")
    parser.add_argument("--work", type=Path, help="folder for the records, by default DEMO/bench")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"), help="the page")
    args = parser.parse_args()
    libraries = psutil.Process().memory_info().rss
    if bool(args.model) != bool(args.dataset):
        raise UserError("--model and --dataset go together")
    check_writable(args.output.parent)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    work = args.work or args.demo / "bench"
    if args.fresh:
        shutil.rmtree(work, ignore_errors=True)
    worlds = [demo(args.demo, work / "demo")]
    if args.model:
        worlds.append(pretrained(args.model, args.dataset, args.pairs, work / "model"))
    tables = [(SUBJECTS[name], table(name, worlds, args.pairs_of_runs)) for name in args.subjects]
    page = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True).from_string(PAGE)
    text = page.render(
        tables=tables,
        estimates=estimates(worlds, [name for name in args.subjects if name in SPLITS], libraries),
        worlds=worlds,
        turns=args.pairs_of_runs,
        command=anonymous(args),
        dates=sorted({json.loads(path.read_text())["date"] for path in work.rglob("record.json")}),
        machine=machine(),
        versions=[" ".join(item) for item in versions().items()],
    )
    write_atomically(args.output, text)
    print(f"The result is in {args.output}")


def anonymous(args: argparse.Namespace) -> str:
    """The command, without the names of this machine's folders."""
    threads = os.environ.get("OMP_NUM_THREADS")
    command = f"{f'OMP_NUM_THREADS={threads} ' if threads else ''}python benchmarks/speed.py DEMO"
    command += f" --model MODEL --dataset DATA --pairs {args.pairs}" if args.model else ""
    command += f" --subjects {' '.join(args.subjects)}" if args.subjects != list(SUBJECTS) else ""
    return f"{command} --pairs_of_runs {args.pairs_of_runs}"


def demo(root: Path, folder: Path) -> World:
    changes = {
        "reward": {"num_train_epochs": 1, "warmup_steps": 20},
        "dpo": {"max_rows": 2048},
        "ppo": {"total_episodes": 1536},
        "grpo": {"max_steps": 12},
    }
    sizes = {name: read_config("demo", "eval")[name] for name in ("prompts", "batch_size", "max_new_tokens")}
    paths = str(root / "dataset"), root / "sft", root / "reward"
    world = World("demo", "demo", folder, *paths, changes, held_out=None, **sizes)
    drop_others(world)
    return world


def pretrained(model: str, dataset: str, pairs: int, folder: Path) -> World:
    """With LoRA, on few pairs and short prompts. Its tokenizer gets the pad token that both sides need."""
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    pairwise = batch | {"max_rows": pairs}
    sizes = {"response_length": 32, "total_episodes": 16}
    changes = {
        "reward": pairwise | {"warmup_steps": 0},
        "dpo": pairwise,
        "ppo": sizes | {"max_prompt_tokens": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        "grpo": batch | {"max_prompt_tokens": 64, "max_completion_length": 32, "max_steps": 2, "num_generations": 4},
    }
    paths = dataset, folder / "policy", folder / "reward" / f"{OURS}-0" / "reward"
    sizes = {"held_out": 32, "prompts": 32, "batch_size": 32, "max_new_tokens": 32}
    world = World(Path(model).name, "smollm2", folder, *paths, changes, **sizes)
    drop_others(world, model)
    if not world.policy.exists():
        tokenizer = load_tokenizer(model, read_config("smollm2", "sft")["pad_token"])
        with replaced(world.policy) as staging:
            load_causal_lm(ModelConfig(model_name_or_path=model, dtype="float32"), tokenizer).save_pretrained(staging)
            tokenizer.save_pretrained(staging)
    return world


def drop_others(world: World, *source: str) -> None:
    """Throw away records of other sizes, models, machines or versions."""
    path = world.folder / "settings.json"
    settings = json.dumps([asdict(world), source, machine(), versions()], default=str)
    if not path.exists() or path.read_text() != settings:
        shutil.rmtree(world.folder, ignore_errors=True)
        write_atomically(path, settings)


def read_config(profile: str, name: str) -> dict:
    return yaml.safe_load(Path(f"configs/{profile}/{name}.yaml").read_text())


def table(name: str, worlds: list[World], number: int) -> list[list[str]]:
    """The rows of a subject's table, the titles first."""
    subject = SUBJECTS[name]
    titles = [*subject.columns, *(["held-out accuracy"] if subject.margins else []), *subject.ratios]
    rows = [["model", "side", *titles]]
    for world in worlds if subject.everywhere else worlds[:1]:
        records = take_turns(name, world, number if subject.ratios else STARTS)
        for side, turns in records.items():
            row = [format(median(turn[key] for turn in turns), form) for key, form in subject.columns.values()]
            row += [held_out_accuracy(name, world, side)] if subject.margins else []
            for key in subject.ratios.values():
                ratios = [a[key] / b[key] for a, b in zip(records[OURS], turns, strict=False)]
                row.append("" if side == OURS else f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
            rows.append([world.name, side, *row])
    return rows if subject.everywhere else [row[1:] for row in rows]


def take_turns(name: str, world: World, number: int) -> dict[str, list[dict]]:
    """The records of all turns of a subject's sides; those that are missing are made."""
    sides = SUBJECTS[name].sides(world)
    records: dict[str, list[dict]] = {side: [] for side in sides}
    for i in range(number):
        for side in list(sides)[:: -1 if i % 2 else 1]:
            if side == NO_CHECKPOINTING and i > 0:  # it only explains a part of the ratio
                continue
            record = turn(world.folder / name / f"{side}-{i}", sides[side])
            records[side].append(record)
            done = f"{record['seconds']:.1f} s, {record['speed']:.1f}/s"
            print(f"{name}, {world.name}, {side}, turn {i + 1}: {done}", flush=True)
    return records


def estimates(worlds: list[World], recipes: list[str], libraries: int) -> list[list[str]]:
    """A table of the memory that `make check` estimates for each training of ours, and of that which it took."""
    rows = [["model", "recipe", "estimate (MB)", "peak (MB)", "estimate / peak"]]
    for world, recipe in itertools.product(worlds, recipes):
        argv = ["--config", f"configs/{world.profile}/{recipe}.yaml", *options(world.settings(recipe))]
        data, model, *_, args = parse(None, *RECIPES[recipe], argv=argv)
        tokenizer, split = load_tokenizer(str(world.policy)), SPLITS[recipe][0]
        step = Step(recipe, data, model, args, None, None, tokenizer, world.rows(recipe, split))
        estimate = step.needs(libraries).total / 2**20
        peak = json.loads((world.folder / recipe / f"{OURS}-0" / "record.json").read_text())["memory"]
        rows.append([world.name, recipe, f"{estimate:.0f}", f"{peak:.0f}", f"{estimate / peak:.2f}"])
    return rows


def held_out_accuracy(name: str, world: World, side: str) -> str:
    """Of the model that the first turn left, as all turns have the same seed."""
    folder = world.folder / name
    trained = folder / f"{side}-0" / name
    found = turn(folder / f"{side}-held-out", lambda _: accuracy(SUBJECTS[name].margins(world, trained)))
    return "{:.3f} [{:.3f}, {:.3f}]".format(found["accuracy"], *found["ci"])


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


def train(recipe: str, world: World, side: str, folder: Path) -> dict:
    """Train in a process of its own, with cold caches; the model is left in `folder`, named as the recipe."""
    log, figures = folder / "log.txt", folder / "figures.json"
    command = [sys.executable, "benchmarks/plain.py", figures, *training_command(recipe, world, side, folder)]
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
    elif side != OURS:  # TRL takes the scores as the reward model gives them
        scale = json.loads((world.reward_model / "config.json").read_text())
        record["reward"] = (record["reward"] - scale["reward_mean"]) / scale["reward_std"]
    return record | {"speed": record.get("tokens", record.get("episodes")) / record["training"]}


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


def options(settings: dict) -> list[str]:
    lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    return [str(word) for key, values in lists.items() for word in (f"--{key}", *values)]


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

    def in_batches() -> None:
        for batch in batches([len(ids) for ids in prompts], world.batch_size):
            sample(model, tokenizer, [prompts[i] for i in batch], world.max_new_tokens, seed=0)

    def one_by_one() -> None:
        for ids in prompts:
            sample(model, tokenizer, [ids], world.max_new_tokens, seed=0)

    return {
        OURS: lambda _: timed(len(prompts), in_batches),
        "one prompt at a time": lambda _: timed(len(prompts), one_by_one),
    }


def scoring(world: World) -> Sides:
    make_reward_model(world)
    model = load_reward_model(str(world.reward_model)).to(device())
    sequences = [prompt + reply for side in ("chosen", "rejected") for prompt, reply in world.held_out_ids(side)]

    def in_batches_of(size: int, _: Path) -> dict:
        return timed(len(sequences), lambda: score(model, sequences, size))

    return {OURS: partial(in_batches_of, world.batch_size), "one reply at a time": partial(in_batches_of, 1)}


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
LARGER = {"memory, ours / this": "memory"}

SUBJECTS = {
    "reward": Subject(
        "Reward model",
        "`recipes/reward.py` and the script behind `trl reward`, on the same pairs and with the same batches, epochs, "
        "learning rate, LoRA, precision and seed. All else is each side's default; as TRL's has gradient checkpointing "
        "on, a third side has it off, in one turn. Useful tokens are those that are not padding. Our whole command "
        "includes the scale of the scores, on up to 256 more replies. Accuracies are on held-out pairs, with Wilson's "
        "95% interval.",
        trainings("reward", TRL, NO_CHECKPOINTING),
        TRAINING | TOKENS | COST,
        FASTER | LARGER,
        reward_margins,
    ),
    "dpo": Subject(
        "DPO",
        "As above, with `recipes/dpo.py` and the script behind `trl dpo`. Our training time includes that for the "
        "log-probabilities under the reference. The accuracy is that of DPO's implicit reward.",
        trainings("dpo", TRL, NO_CHECKPOINTING),
        TRAINING | TOKENS | COST,
        FASTER | LARGER,
        implicit_margins,
    ),
    "ppo": Subject(
        "PPO",
        "`recipes/ppo.py` and TRL's `PPOTrainer` as its example uses it (`benchmarks/plain.py`), with the same config, "
        "prompts and models. `num_mini_batches` adds no optimizer steps to TRL's. Rewards are means over the last "
        "quarter of the updates, in standard deviations of the reward model's scores.",
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
    "scoring": Subject("Scoring", "Both replies of held-out pairs, by the reward model.", scoring, LOOP, FASTER),
    "judge": Subject(
        "Judge",
        f"Verdicts of a server on this machine that takes {DELAY} s for each, as `make judge` asks for them.",
        judging,
        LOOP,
        FASTER,
        everywhere=False,
    ),
    "start": Subject(
        "Start", f"Medians of {STARTS} starts.", starting, {"seconds": ("seconds", ".2f")}, {}, everywhere=False
    ),
}

if __name__ == "__main__":
    main()
