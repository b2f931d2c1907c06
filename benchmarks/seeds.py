"""How the results of a profile vary from seed to seed: final policies, their differences, learning curves.

    make seeds                                         # trains and scores the demo with five seeds, then this
    python benchmarks/seeds.py runs/seeds/*/demo

Each folder is a profile run with a seed of its own, scored by `make score`. Writes OUTPUT/PROFILE-seeds.md and its
figure, PROFILE-seeds.svg. Every number comes from the files of the runs; tests and counts choose the sentences.
"""

import argparse
import itertools
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import sem, t, ttest_1samp

from eval import stats
from eval.figures import SVG
from eval.files import read_jsonl, write_atomically
from rlhf_trl.errors import UserError, check_writable, cli

METHODS = ("ppo", "grpo", "dpo")
POLICIES = ("sft", *METHODS)
RECIPES = ("sft", "reward", *METHODS)
MEASURES = {"proxy": "proxy reward", "gold": "gold reward", "kl": "KL from SFT (nats)"}
TRAINING_REWARD = {"ppo": "objective/scores", "grpo": "reward"}  # DPO samples nothing while it trains
# What may differ between the seeds' configs
RUN_KEYS = {"dataset", "model_name_or_path", "reward_model_path", "output_dir", "seed"}
LENGTHS = ("total_episodes", "max_steps", "num_train_epochs")  # the first that is set decides
SETTINGS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size")
SETTINGS += ("gradient_accumulation_steps", "kl_coef", "beta", "temperature", "missing_eos_penalty")
SETTINGS += ("num_generations", "num_ppo_epochs", "num_mini_batches", "use_peft")

PAGE = """\
# {{ profile }} over {{ seeds | length }} seeds: PPO, GRPO and DPO

**{{ headline }}**

{% for sentence in sentences %}
- {{ sentence }}
{% endfor %}

Policies are paired within a seed, where they answered the same prompts: how hard these are cancels. Tests and intervals
are Student's, over seeds: they cover the chance in a training run, which the interval in the report of one run does
not. They are about the mean over all seeds; how far one run may be from it, the sd tells. `benchmarks/seeds.py` wrote
this page from the files of the runs.

![Reward and KL against the share of the training done]({{ figure }}.svg)

## What was run

Seeds {{ seeds | listed }}, {{ dates | listed }}, on {{ machines | listed }},
with {{ versions | listed }}.
Training took {{ minutes | min | fixed(1) }} to {{ minutes | max | fixed(1) }} minutes a seed. The commands, which
`make seeds` runs for the demo:

```bash
{% for run in runs %}
make score PROFILE={{ profile }} SEED={{ run.seed }} RUNS={{ run.root.parent }}{{ " " + variant if variant }}
{% endfor %}
python benchmarks/seeds.py {{ runs | map(attribute="root") | join(" ") }}{{ " --variant '" + variant + "'" if variant }}
```

`SEED` draws everything: the demo's data and base model, the training and the held-out replies.

## Final policies

Replies of each policy to {{ runs[0].prompts }} held-out prompts a seed, {{ runs[0].replies }} to each at temperature 1.
A seed counts as one value, the mean over its replies; in brackets the 95% Student interval over seeds, which takes
these means as normally distributed. The proxy reward is in units of each seed's own reward model.

| | policy | mean over seeds | sd over seeds | range |
|---|---|---|---|---|
{% for row in policies %}
| {{ row.measure }} | {{ row.policy }} | {{ row | interval }} | {{ row.sd | fixed(3) }} | \
{{ row.min | fixed }} to {{ row.max | fixed }} |
{% endfor %}

Gold reward, seed by seed:

| seed | sft | ppo | grpo | dpo |
|---|---|---|---|---|
{% for run in runs %}
| {{ run.seed }} |{% for means in run.means.values() %} {{ means.gold | fixed }} |{% endfor %}

{% endfor %}

## Learning curves

In the figure lines are means over seeds, and bands reach one sd over seeds to either side; below, means ± sd. The table
and the first three panels are of the first {{ runs[0].curve_prompts }} prompts, so that the ends differ from the table
above. The last panel is the reward model's mean score of what PPO and GRPO sampled at each step, less the penalty for
replies without eos; DPO samples nothing while it trains.

| policy | training done |{% for title in titles %} {{ title }} |{% endfor %}

|---|---|---|---|---|
{% for name, points in curves.items() %}
{% set first = loop.first %}
{% for point in points if point.share or first %}
| {{ name if point.share else "sft" }} | {{ (100 * point.share) | fixed(0) }}% |\
{% for e in point.estimates.values() %} {{ e.mean | fixed }} ± {{ e.sd | fixed }} |{% endfor %}

{% endfor %}
{% endfor %}

## Settings

Those of these runs, the same for every seed, as their `config.yaml` have them.
{% if tried %}
Other settings that were tried: {% for page in tried %}[{{ page }}]({{ page }}){{ ", " if not loop.last }}{% endfor %}.
{% endif %}

{% for name, values in settings.items() %}
- {{ name }}: {% for key, value in values.items() %}`{{ key }}` {{ value }}{{ ", " if not loop.last }}{% endfor %}

{% endfor %}
"""


@cli
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="profile folders (RUNS/PROFILE), each of another seed")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for page and figure")
    parser.add_argument("--variant", default="", help="what make was given to change the profile, as 'ARGS_ppo=...'")
    args = parser.parse_args()
    check_writable(args.output)
    summary = summarise(args.runs)
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"interval": _interval, "listed": _listed, "fixed": _fixed}
    stem = f"{summary['profile']}-seeds"
    path = args.output / f"{re.sub(r'[^a-z0-9._]+', '-', f'{stem} {args.variant}'.lower()).strip('-')}.md"
    tried = sorted(other.name for other in args.output.glob(f"{stem}*.md") if other != path)
    text = environment.from_string(PAGE).render(summary, variant=args.variant, tried=tried, figure=path.stem)
    write_atomically(path, text)
    draw(summary, path.with_suffix(".svg"))
    print(f"The results over {len(summary['seeds'])} seeds are in {path}")


def summarise(roots: list[Path]) -> dict:
    """The numbers and sentences of the page; estimates are dicts as `over_seeds` gives them.

    Raises:
        UserError: as `load` and `check_comparable`.
    """
    runs = [load(root) for root in roots]
    check_comparable(runs)
    manifests = [manifest for run in runs for manifest in run["manifests"].values()]
    pairs = compare({name: np.array([run["means"][name]["gold"] for run in runs]) for name in POLICIES})
    training = {name: zip(*(run["training"][name] for run in runs), strict=True) for name in TRAINING_REWARD}
    return {
        "profile": roots[0].name,
        "titles": list(MEASURES.values()),
        "runs": runs,
        "seeds": [run["seed"] for run in runs],
        "dates": sorted({manifest["created"][:10] for manifest in manifests}),
        "machines": list(dict.fromkeys(_machine(manifest["machine"]) for manifest in manifests)),
        "versions": list(dict.fromkeys(" ".join(v) for manifest in manifests for v in manifest["versions"].items())),
        "minutes": [sum(m["train"]["seconds"] for m in run["manifests"].values()) / 60 for run in runs],
        "policies": [
            {"measure": title, "policy": name} | over_seeds([run["means"][name][measure] for run in runs])
            for measure, title in MEASURES.items()
            for name in POLICIES
        ],
        "pairs": pairs,
        "headline": headline(pairs),
        "sentences": [sentence(pair, len(runs)) for pair in pairs],
        "curves": {name: curve([run["curves"][name] for run in runs]) for name in METHODS},
        "training": {name: [over_seeds(values) for values in steps] for name, steps in training.items()},
        "settings": {name: main_settings(config) for name, config in runs[0]["configs"].items()},
    }


def load(root: Path) -> dict:
    """What the page needs of one profile run: means over replies, curves, settings.

    Raises:
        UserError: a file is missing, or there is no gold reward.
    """
    manifests = {name: json.loads(_existing(root, f"{name}/manifest.json").read_text()) for name in RECIPES}
    scores = {name: read_jsonl(_existing(root, f"scores/{name}.jsonl")) for name in POLICIES}
    if scores["sft"][0]["gold"] is None:
        raise UserError(f"the scores in {root} have no gold reward; give runs of a profile with a gold_rule")
    metrics = {name: read_jsonl(_existing(root, f"{name}/metrics.jsonl")) for name in METHODS}
    return {
        "root": root,
        "seed": manifests["sft"]["seed"],
        "manifests": manifests,
        "configs": {name: yaml.safe_load(_existing(root, f"{name}/config.yaml").read_text()) for name in RECIPES},
        "prompts": _prompts(scores["sft"]),
        "replies": len(scores["sft"]) // _prompts(scores["sft"]),
        "means": {name: over_replies(rows) for name, rows in scores.items()},
        "curve_prompts": _prompts(read_jsonl(_existing(root, "scores/checkpoints/sft-final.jsonl"))),
        "curves": {name: _points(root, name) for name in METHODS},
        "training": {name: [row[key] for row in metrics[name] if key in row] for name, key in TRAINING_REWARD.items()},
    }


def _existing(root: Path, name: str) -> Path:
    if not (root / name).exists():
        command = f"make score PROFILE={root.name} RUNS={root.parent} SEED=..."
        raise UserError(f"{root / name} is missing; finish that run with '{command}'")
    return root / name


def _prompts(rows: list[dict]) -> int:
    return len({row["dialogue"] for row in rows})


def over_replies(rows: list[dict]) -> dict[str, float]:
    """The means of the replies' proxy, gold and KL."""
    return {measure: float(np.mean([row[measure] for row in rows])) for measure in MEASURES}


def _points(root: Path, name: str) -> list[dict]:
    """The curve of one run: SFT, checkpoints and end, each with the share of the training done."""
    state = next((root / name).glob("checkpoint-*/trainer_state.json"), root / name / "checkpoint-*")
    steps = json.loads(_existing(root, state.relative_to(root).as_posix()).read_text())["max_steps"]
    paths = (root / "scores" / "checkpoints").glob(f"{name}-*.jsonl")
    saved = sorted(int(path.stem.rpartition("-")[2]) for path in paths if not path.stem.endswith("-final"))
    files = {0: "sft-final", **{step: f"{name}-{step}" for step in saved}, steps: f"{name}-final"}
    rows = {step: read_jsonl(_existing(root, f"scores/checkpoints/{file}.jsonl")) for step, file in files.items()}
    return [{"share": step / steps} | over_replies(rows[step]) for step in files]


def check_comparable(runs: list[dict]) -> None:
    """Make sure that the spread over these runs is one over seeds.

    Raises:
        UserError: there is one run only or a seed twice, or the runs differ in settings, steps, checkpoints or prompts.
    """
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < max(2, len(seeds)):
        raise UserError(f"the seeds of the runs are {_listed(seeds)}; give two runs or more, and each seed once")
    first, *others = ((run["root"], _conditions(run)) for run in runs)
    for root, conditions in others:
        keys = [key for key in conditions | first[1] if conditions.get(key) != first[1].get(key)]
        if keys:
            raise UserError(f"{root} and {first[0]} differ in {_listed(keys)}; give runs that differ in their seed")


def _conditions(run: dict) -> dict:
    """What has to be the same for all seeds."""
    settings = {f"{name}'s {k}": v for name, c in run["configs"].items() for k, v in c.items() if k not in RUN_KEYS}
    steps = {f"{name}'s logged steps": len(values) for name, values in run["training"].items()}
    points = {f"{name}'s number of checkpoints": len(points) for name, points in run["curves"].items()}
    return settings | steps | points | {"the number of prompts": (run["prompts"], run["replies"], run["curve_prompts"])}


def over_seeds(values: list[float]) -> dict:
    """Mean over seeds of one value a seed, with its 95% Student interval, sd and range."""
    values = np.asarray(values, dtype=float)
    mean, half = values.mean(), t.ppf(0.975, len(values) - 1) * sem(values)
    spread = {"sd": values.std(ddof=1), "min": values.min(), "max": values.max()}
    return stats.as_dict(stats.Estimate(mean, mean - half, mean + half)) | spread


def curve(runs: list[list[dict]]) -> list[dict]:
    """The curves of all seeds, point by point; the first checkpoint of one seed goes with the first of another."""
    return [
        {
            "share": np.mean([point["share"] for point in points]),
            "estimates": {measure: over_seeds([point[measure] for point in points]) for measure in MEASURES},
        }
        for points in zip(*runs, strict=True)
    ]


def compare(values: dict[str, np.ndarray]) -> list[dict]:
    """Every later policy minus every earlier one, paired by seed; each array has the shape (seeds,).

    `better` is the winner where Student's paired t-test shows one at 5% after Holm's correction over all pairs.
    """
    pairs = [(b, a, values[b] - values[a]) for a, b in itertools.combinations(values, 2)]
    # The test divides by the spread
    p_values = [ttest_1samp(d, 0).pvalue if np.ptp(d) else float(not d.any()) for _, _, d in pairs]
    return [
        {"a": a, "b": b, **over_seeds(d), "higher": int((d > 0).sum()), "lower": int((d < 0).sum()), "p_holm": p}
        | {"better": (a if d.mean() > 0 else b) if p < 0.05 else None}
        for (a, b, d), p in zip(pairs, stats.holm(p_values), strict=True)
    ]


def headline(pairs: list[dict]) -> str:
    """The first sentence: the policy that the tests show to have a higher gold reward than all others, if any."""
    won = [pair["better"] for pair in pairs]
    for name in POLICIES:
        if won.count(name) == len(POLICIES) - 1:
            return f"Over seeds, {name.upper()}'s gold reward is higher than that of every other policy."
    return "Over seeds, no policy's gold reward is shown to be higher than that of every other."


def sentence(pair: dict, seeds: int) -> str:
    """What the corrected test of one pair shows, and in how many seeds the difference had the sign of its mean."""
    a, b, direction = pair["a"].upper(), pair["b"].upper(), "higher" if pair["mean"] > 0 else "lower"
    claim = f"{a}'s gold reward is {direction} than {b}'s"
    if not pair["better"]:
        claim = f"No difference in gold reward is shown between {a} and {b}"
    count = f"all {seeds}" if pair[direction] == seeds else f"{pair[direction]} of {seeds}"
    lower, upper = pair["ci"]
    interval = f"difference {pair['mean']:+z.2f}, 95% CI {lower:+z.2f} to {upper:+z.2f}, sd {pair['sd']:.2f}"
    return f"{claim} ({interval}; {direction} in {count} seeds; p = {pair['p_holm']:.2g} after Holm's correction)."


def main_settings(config: dict) -> dict:
    """The settings that matter most, by their names in `config.yaml`."""
    length = next(key for key in LENGTHS if (config.get(key) or -1) > 0)
    return {key: config[key] for key in (length, *SETTINGS) if key in config}


def draw(summary: dict, path: Path) -> None:
    """Proxy, gold and KL at the checkpoints, and the reward at every step of the training."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    *panels, last = figure.subplots(2, 2).flat
    for axis, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for name, points in summary["curves"].items():
            _band(axis, name, [p["share"] for p in points], [p["estimates"][measure] for p in points], "o-")
        axis.set(ylabel=title)
    for name, estimates in summary["training"].items():
        # the replies of a step are sampled before its update
        _band(last, name, np.arange(len(estimates)) / len(estimates), estimates, "-")
    last.set(ylabel="reward while training")
    for axis in (*panels, last):
        axis.set(xlabel="share of the training done")
        axis.legend(fontsize="small")
    with matplotlib.rc_context(SVG):
        figure.savefig(path, metadata={"Date": None})


def _band(axis: Axes, name: str, shares: list[float] | np.ndarray, estimates: list[dict], line: str) -> None:
    """Mean over seeds, with a band of one sd."""
    mean, sd = (np.array([e[key] for e in estimates]) for key in ("mean", "sd"))
    color = f"C{METHODS.index(name)}"
    axis.plot(shares, mean, line, color=color, markersize=3, label=name)
    axis.fill_between(shares, mean - sd, mean + sd, color=color, alpha=0.2, linewidth=0)


def _machine(machine: dict) -> str:
    return f"{', '.join([machine['cpu'], *machine['gpus']])} (threads: {machine['threads']})"


def _fixed(value: float, digits: int = 2) -> str:
    return f"{value:z.{digits}f}"


def _interval(e: dict) -> str:
    return f"{_fixed(e['mean'])} [{_fixed(e['ci'][0])}, {_fixed(e['ci'][1])}]"


def _listed(items: list) -> str:
    *others, last = map(str, items)
    return f"{', '.join(others)} and {last}" if others else last


if __name__ == "__main__":
    main()
