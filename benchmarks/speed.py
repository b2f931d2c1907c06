"""How fast this project is beside plain TRL, and its evaluation beside plain loops: docs/benchmarks.md.

    make bench
    python benchmarks/speed.py runs/demo runs/smollm2
    python benchmarks/speed.py runs/demo --only judge start

Each folder is that of a profile, and has its sft and reward. What was measured stays in its folder bench: after an
interrupt the same command goes on. After a change of code, configs or models delete that.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import datasets
import psutil
import transformers
from contestants import COMPARISONS, DELAY, OURS, recorded
from pages import markdown_table, render
from setups import Setup, parsed

from rlhf_trl.cli import cli
from rlhf_trl.config import RECIPES
from rlhf_trl.errors import check_writable
from rlhf_trl.files import write_atomically
from rlhf_trl.measure import machine, versions
from rlhf_trl.memory import estimate
from rlhf_trl.models import read_config

REPETITIONS = {"profile": 1, "padding": 1, "sft": 1, "start": 5}  # of what is not compared
WITHOUT_MODEL = ("judge", "start")
HIDDEN = ("tokens", "positions", "episodes", "useful share a pass")
SPEED = "speed, ours / this"
RATIOS = {"useful tokens a second": SPEED, "episodes a second": SPEED, "items a second": SPEED}
RATIOS |= {"useful share a pass": "by arithmetic", "peak memory (MB)": "memory, ours / this"}


@cli
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", type=Path, nargs="+", help="folders of profiles, with sft and reward trained")
    parser.add_argument("--repetitions", type=int, default=3, help="by each contestant")
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), help="print these tables, and write no page")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"), help="the page")
    args = parser.parse_args()
    libraries = psutil.Process().memory_info().rss
    check_writable(args.output.parent)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    setups, tables = [Setup(folder) for folder in args.profiles], {}
    for name in args.only or COMPARISONS:
        tables[name] = markdown_table(list(rows(name, setups, args.repetitions)))
        print(f"\n{tables[name]}\n", flush=True)
    if not args.only:
        tables["memory"] = markdown_table(list(memory_rows(setups, libraries)))
        values = {"tables": tables, "setups": setups, "repetitions": args.repetitions, "delay": DELAY}
        write_atomically(args.output, render("speed.md.jinja", **values))
        print(f"The result is in {args.output}")


def record_folder(setup: Setup) -> Path:
    """Where what was measured lies: apart for other sizes, machines and versions."""
    made_with = json.dumps([setup.changes, machine(), versions()])
    return setup.folder / "bench" / hashlib.sha256(made_with.encode()).hexdigest()[:8]


def rows(name: str, setups: list[Setup], repetitions: int) -> Iterator[dict[str, str]]:
    """The rows of a comparison's table: medians over the repetitions, and how ours compare with those of another."""
    for setup in setups[:1] if name in WITHOUT_MODEL else setups:
        measured = repeat(name, setup, REPETITIONS.get(name, repetitions))
        for contestant, records in measured.items():
            shown = [title for title in records[0] if title not in HIDDEN]
            row = {"model": setup.name, "contestant": contestant}
            row |= {title: figure([record[title] for record in records]) for title in shown}
            if OURS in measured and len(measured) > 1:
                compared = [title for title in RATIOS if title in records[0]]
                row |= {RATIOS[title]: ratio(title, measured[OURS], records) for title in compared}
            yield row


def repeat(name: str, setup: Setup, repetitions: int) -> dict[str, list[dict]]:
    """The figures of all repetitions by each contestant, in turn; those that are missing are measured."""
    contestants = COMPARISONS[name](setup)
    measured: dict[str, list[dict]] = {contestant: [] for contestant in contestants}
    for i in range(repetitions):
        for contestant in list(contestants)[:: -1 if i % 2 else 1]:
            print(f"{name}, {setup.name}, {contestant}, repetition {i + 1}", flush=True)
            measured[contestant].append(
                recorded(record_folder(setup) / name / f"{contestant}-{i}", contestants[contestant])
            )
    return measured


def figure(values: list[float | str]) -> str:
    """The median, to about three digits; of texts, which repetitions with one seed have in common, the first."""
    if isinstance(values[0], str):
        return values[0]
    value = median(values)
    return f"{value:.0f}" if value == round(value) else f"{value:.{max(0, 3 - len(str(int(abs(value)))))}f}"


def ratio(title: str, ours: list[dict], theirs: list[dict]) -> str:
    """The median of a figure's ratios within the repetitions, with the extremes; nothing for ours to ours."""
    ratios = [a[title] / b[title] for a, b in zip(ours, theirs, strict=True)]
    return "" if ours is theirs else f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def memory_rows(setups: list[Setup], libraries: int) -> Iterator[dict[str, str]]:
    """What `make check` estimates for each training of ours, beside what it took.

    Args:
        libraries: what a process without a model takes, in bytes.
    """
    splits = {"sft": "sft", "reward": "reward", "dpo": "reward", "ppo": "policy", "grpo": "policy"}
    for setup in setups:
        for recipe in RECIPES:
            folder = record_folder(setup) / recipe / f"{OURS}-0"
            _, model, *_, args = parsed(recipe, "--config", str(folder / "config.yaml"))
            config, data = read_config(model).get_text_config(), setup.rows(recipe, splits[recipe])
            config.vocab_size = max(config.vocab_size, len(setup.frame.tokenizer))
            longest = max(map(len, data["prompt_ids"])) if recipe in ("ppo", "grpo") else max(data["length"])
            process = 0 if args.device.type == "cuda" else libraries
            expected = estimate(recipe, config, model, args, longest, process).total / 2**20
            peak = json.loads((folder / "figures.json").read_text())["peak memory (MB)"]
            row = {"model": setup.name, "recipe": recipe, "estimate (MB)": f"{expected:.0f}"}
            yield row | {"peak (MB)": f"{peak:.0f}", "estimate / peak": f"{expected / peak:.2f}"}


if __name__ == "__main__":
    main()
