"""The numbers of a report, from the files that the other commands left; what is not there is None.

The unit is the prompt: replies to one prompt are averaged first, and differences are paired by prompt.
"""

import json
from pathlib import Path

import numpy as np

from eval.analysis import conditions, intervals
from eval.analysis.comparisons import MEASURES, compare, judged, per_prompt, position_bias, signs
from eval.analysis.overoptimisation import optimisation
from eval.analysis.replies import by_subset, describe, rewards, untrained
from eval.config import ReportConfig
from rlhf_trl.errors import UserError
from rlhf_trl.files import read_jsonl


def summarise(root: Path, config: ReportConfig) -> dict:
    """The content of `summary.json`. Estimates are dicts of `mean` and `ci`.

    Raises:
        UserError: nothing was scored yet, with other models, or there is nothing to compare.
    """
    names = list(config.folders)
    if len(names) < 2:
        raise UserError("a report compares two policies or more; name them in policies")
    policies = {name: read_jsonl(root / "scores" / f"{name}.jsonl") for name in names}
    for name, rows in policies.items():
        if not rows:
            raise UserError(f"{root / 'scores' / name}.jsonl is missing; run 'make score' first")
    samples, scored = (_read(root / stage / "manifest.json") for stage in ("samples", "scores"))
    greedy = {name: read_jsonl(root / "scores" / "greedy" / f"{name}.jsonl") for name in ("base", *names)}
    greedy_policies = {name: greedy[name] for name in names}
    judge = _read(root / "judge" / "manifest.json") or {}
    verdicts = read_jsonl(root / "judge" / "verdicts.jsonl")
    warm = _measures(policies, verdicts, config, "")
    cold = _measures(greedy_policies, verdicts, config, "greedy/")
    measure = next(name for name in MEASURES if warm[name])
    compared_greedily = (
        next(name for name in MEASURES if warm[name] and cold[name]) if all(greedy_policies.values()) else None
    )

    card = _read(root / "reward-model" / "card.json")
    if card and card["manifest"]["reward_model"]["sha256"] != scored["made_of"]["reward_model"]["sha256"]:
        card = None  # of another reward model
    folders = {"reward": config.reward_model} | config.folders
    manifests = {name: _read(Path(folder) / "manifest.json") for name, folder in folders.items()}
    runs = {name: manifest for name, manifest in manifests.items() if manifest}
    settings = conditions.read_settings({name: config.folders[name] for name in names})
    base = read_jsonl(root / "scores" / "base.jsonl")
    shown = ({"base": base} if base else {}) | policies
    described = {
        name: describe(rows, config.seed)
        | {
            "greedy": rewards(greedy[name], config.seed),
            "kl_is": scored["kl"].get(name),
            "train": runs[name]["train"] if name in runs else None,
        }
        for name, rows in shown.items()
    }
    curves = _curves(root, policies, verdicts, config.seed)
    held = conditions.shared(names, runs, settings, scored["made_of"]["reward_model"]["sha256"])
    summary = {
        "profile": root.name,
        "seed": samples["seed"],
        "machine": samples["machine"],
        "versions": samples["versions"],
        "data": samples["data"],
        "settings": samples["settings"],
        "reference": names[0],
        "checkpoints": names,
        "prompts": len(per_prompt(policies[names[0]], "proxy")),
        "smallest_difference": config.smallest_difference,
        "comparisons": warm[measure],
        "measures": {name: pairs for name, pairs in warm.items() if pairs},
        "signs": {
            "measure": compared_greedily,
            "pairs": len(cold[compared_greedily]) if compared_greedily else 0,
            "changes": signs(warm[compared_greedily], cold[compared_greedily]) if compared_greedily else [],
        },
        "conditions": held,
        "matched": bool(held) and all(condition["holds"] for condition in held),
        "same_method": conditions.same_method(settings, runs),
        "differences": conditions.differences(
            {name: settings[name] for name in conditions.trained(names, runs) if name in settings},
            runs,
            described,
            scored["scale"]["std"],
        ),
        "policies": described,
        "untrained": untrained(root, names[0], policies[names[0]], base, config.seed),
        "subsets": by_subset(shown, config.seed),
        "judge": judge
        | {
            "pairs": warm["win rate"],
            "greedy": cold["win rate"],
            "first_place_wins": position_bias([verdict for verdict in verdicts if verdict["a"] in policies]),
            "worst_case": _worst_case(verdicts, judge),
        }
        if warm["win rate"]
        else None,
        "optimisation": curves,
        "probes": _probes(root, list(shown)),
        "reward_model": card,
        "data_analysis": _read(root / "data" / "data.json"),
        "runs": runs,
        "total_seconds": {name: _total_seconds(name, runs) for name in runs},
    }
    missing = {name: text for name, text in MISSING.items() if not summary[name]}
    if not curves["has_path"]:
        missing["optimisation"] = "Neither checkpoints nor best-of-n replies were scored"
    if "judge" in missing and judge:
        failed = sum(sum(kinds.values()) for kinds in judge.get("failures", {}).values())
        missing["judge"] += f" ({judge.get('reason') or f'{failed} requests failed'})"
    return summary | {"missing": missing}


MISSING = {
    "judge": "No judge compared the replies",
    "probes": "No failure-mode probes were put to the policies",
    "reward_model": "There is no card of this reward model: `make eval-reward`",
    "data_analysis": "The data were not analysed: `make data`",
}


def _measures(
    scores: dict[str, list[dict]], verdicts: list[dict], config: ReportConfig, prefix: str
) -> dict[str, list[dict]]:
    """By measure, all pairs of policies; nothing where there is no such measure."""
    if not all(scores.values()):
        return {measure: [] for measure in MEASURES}
    margin, seed = config.smallest_difference, config.seed
    pairs = judged(verdicts, {prefix + name: rows for name, rows in scores.items()}, margin, seed)
    for pair in pairs:
        pair |= {side: pair[side].removeprefix(prefix) for side in ("a", "b", "better") if pair[side]}
    has_gold = next(iter(scores.values()))[0]["gold"] is not None
    return {
        "win rate": pairs,
        "gold reward": compare(scores, "gold", margin, seed) if has_gold else [],
        "proxy reward": compare(scores, "proxy", margin, seed),
    }


def _worst_case(verdicts: list[dict], judge: dict) -> dict[str, list[float]]:
    """Of each pair with replies that failed, the win rates if they had all been lost, and all been won."""
    bounds = {}
    for pair, places in judge.get("failed", {}).items():
        known = [(row["prompt"], row["score"]) for row in verdicts if f"{row['a']}:{row['b']}" == pair]
        bounds[pair] = [_mean_by_prompt([*known, *((prompt, end) for prompt, _ in places)]) for end in (0.0, 1.0)]
    return bounds


def _mean_by_prompt(values: list[tuple[int, float]]) -> float:
    by_prompt: dict[int, list[float]] = {}
    for prompt, value in values:
        by_prompt.setdefault(prompt, []).append(value)
    return float(np.mean([np.mean(some) for some in by_prompt.values()]))


def _curves(root: Path, policies: dict[str, list[dict]], verdicts: list[dict], seed: int) -> dict:
    checkpoints: dict[str, dict[str, list[dict]]] = {}
    for path in (root / "scores" / "checkpoints").glob("*.jsonl"):
        name, _, step = path.stem.rpartition("-")
        if name in policies:
            checkpoints.setdefault(name, {})[step] = read_jsonl(path)
    scores: dict[tuple[str, str], dict[int, list[float]]] = {}
    for verdict in verdicts:
        pair = scores.setdefault((verdict["a"], verdict["b"]), {})
        pair.setdefault(verdict["prompt"], []).append(verdict["score"])
    means = {pair: {prompt: float(np.mean(some)) for prompt, some in of.items()} for pair, of in scores.items()}
    return optimisation(policies, checkpoints, read_jsonl(root / "scores" / "best_of.jsonl"), means, seed)


def _total_seconds(name: str, manifests: dict[str, dict]) -> float:
    """Training time of a run and of all that it was made from, each counted once."""
    by_weights = {manifest["sha256"]: other for other, manifest in manifests.items()}
    needed, todo = set(), [name]
    while todo:
        current = todo.pop()
        needed.add(current)
        parents = [by_weights.get(parent["sha256"]) for parent in manifests[current]["made_of"].values()]
        todo += [parent for parent in parents if parent and parent not in needed]
    return sum(manifests[run]["train"]["seconds"] for run in needed)


def _probes(root: Path, names: list[str]) -> dict | None:
    """Per policy and group, how many of the checked probes passed, with Wilson's interval over the probes."""
    files = {name: read_jsonl(root / "scores" / "probes" / f"{name}.jsonl") for name in names}
    if not any(files.values()):
        return None
    result = {}
    for name, rows in files.items():
        groups: dict[str, list[bool]] = {}
        for row in rows:
            if row["passed"] is not None:
                groups.setdefault(row["group"], []).append(row["passed"])
        result[name] = {
            group: {
                "passed": sum(passed),
                "n": len(passed),
                **intervals.as_dict(intervals.proportion(sum(passed), len(passed))),
            }
            for group, passed in groups.items()
        }
    return result


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
