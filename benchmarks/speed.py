"""How fast this project is beside plain TRL, and its evaluation beside plain loops. Both sides do the same, in turns.

    make bench
    python benchmarks/speed.py runs/demo --model MODEL --dataset DATA --subjects reward dpo

The demo's folder has its sft and reward. With MODEL (a small chat model) and DATA (pairs in HH-RLHF's layout) all but
judge and start are measured on these, too. Each turn leaves a record in WORK and is not run again, unless
sizes, machine or versions changed: after an interrupt the same command goes on. After a change of our code or configs
give `--fresh`. Writes OUTPUT.
"""

import argparse
import itertools
import json
import os
import shutil
from pathlib import Path
from statistics import median

import datasets
import psutil
import transformers
from jinja2 import Environment, StrictUndefined
from sides import NO_CHECKPOINTING, OURS, turn
from subjects import SUBJECTS
from worlds import World, demo, options, pretrained

from eval.analysis.calibration import accuracy
from eval.check import SPLITS, Step
from rlhf_trl.config import RECIPES, parse
from rlhf_trl.errors import UserError, check_writable, cli
from rlhf_trl.files import write_atomically
from rlhf_trl.measure import machine, versions

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
which need not be that of the medians, with the smallest and the largest; above 1, ours is faster, or takes more memory.
The speed of a training is that of its loop, without imports, loading and saving.
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


def table(name: str, worlds: list[World], number: int) -> list[list[str]]:
    """The rows of a subject's table, the titles first."""
    subject = SUBJECTS[name]
    titles = [*subject.columns, *(["held-out accuracy"] if subject.margins else []), *subject.ratios]
    rows = [["model", "side", *titles]]
    for world in worlds if subject.everywhere else worlds[:1]:
        records = take_turns(name, world, subject.turns or number)
        for side, turns in records.items():
            row = [format(median(turn[key] for turn in turns), form) for key, form in subject.columns.values()]
            row += [held_out_accuracy(name, world, side)] if subject.margins else []
            for key in subject.ratios.values():
                ratios = [a[key] / b[key] for a, b in zip(records[OURS], turns, strict=False)]
                extremes = f" [{min(ratios):.2f}, {max(ratios):.2f}]" if len(ratios) > 1 else ""
                row.append("" if side == OURS else f"{median(ratios):.2f}{extremes}")
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
        step = Step(recipe, data, model, args, args, None, world.frame, world.rows(recipe, SPLITS[recipe][0]))
        estimate = step.needs(libraries).total / 2**20
        peak = json.loads((world.folder / recipe / f"{OURS}-0" / "record.json").read_text())["memory"]
        rows.append([world.name, recipe, f"{estimate:.0f}", f"{peak:.0f}", f"{estimate / peak:.2f}"])
    return rows


def held_out_accuracy(name: str, world: World, side: str) -> str:
    """Of the model that the first turn left, as all turns have the same seed."""
    folder = world.folder / name
    trained = folder / f"{side}-0" / name
    found = turn(folder / f"{side}-held-out", lambda _: accuracy(SUBJECTS[name].margins(world, trained)).json())
    return "{:.3f} [{:.3f}, {:.3f}]".format(found["mean"], *found["ci"])


if __name__ == "__main__":
    main()
