"""The numbers of a report; what is not there is None. The unit is the prompt: replies to one prompt are averaged first,
and differences are paired by prompt."""

from collections import defaultdict

from eval.analysis import conditions, intervals
from eval.analysis.comparisons import (
    MEASURES,
    Comparison,
    Verdicts,
    compare,
    judged,
    per_prompt,
    position_bias,
    signs,
    worst_case,
)
from eval.analysis.overoptimisation import optimisation
from eval.analysis.replies import by_subset, describe, rewards, untrained
from eval.analysis.results import GREEDY, Results

MISSING = {
    "judge": "No judge compared the replies",
    "probes": "No failure-mode probes were put to the policies",
    "reward_model": "There is no card of this reward model: `make eval-reward`",
    "data_analysis": "The data were not analysed: `make data`",
}


def summarise(results: Results) -> dict:
    """The content of `summary.json`."""
    names, seed, runs, judge = results.names, results.config.seed, results.runs, results.judge
    warm = _measures(results, results.policies, results.verdicts)
    cold = _measures(results, results.greedy, results.greedy_verdicts)
    measure = next(name for name in MEASURES if warm[name])
    in_both = next((name for name in MEASURES if warm[name] and cold[name]), None)
    described = {
        name: describe(rows, seed)
        | {
            "greedy": rewards(results.scores.get(f"{GREEDY}{name}", []), seed),
            "kl_is": results.scored["kl"].get(name),
            "train": runs[name]["train"] if name in runs else None,
        }
        for name, rows in results.shown.items()
    }
    curves = optimisation(results.scores, names, results.verdicts, seed)
    held = conditions.shared(results)
    summary = {
        "profile": results.root.name,
        **{fact: results.samples[fact] for fact in ("seed", "machine", "versions", "data", "settings")},
        "reference": names[0],
        "checkpoints": names,
        "prompts": len(per_prompt(results.policies[names[0]], "proxy")),
        "smallest_difference": results.config.smallest_difference,
        "comparisons": warm[measure],
        "measures": {name: pairs for name, pairs in warm.items() if pairs},
        "signs": {
            "measure": in_both,
            "pairs": len(cold[in_both]) if in_both else 0,
            "changes": signs(warm[in_both], cold[in_both]) if in_both else [],
        },
        "conditions": held,
        "matched": bool(held) and all(condition["holds"] for condition in held),
        "same_method": conditions.same_method(results),
        "differences": conditions.differences(results, described),
        "policies": described,
        "untrained": untrained(results),
        "subsets": by_subset(results.shown, seed),
        "judge": judge
        | {
            "pairs": warm["win rate"],
            "greedy": cold["win rate"],
            "first_place_wins": position_bias({p: of for p, of in results.verdicts.items() if p[0] in names}),
            "worst_case": worst_case(results.verdicts, judge.get("failed", {})),
        }
        if warm["win rate"]
        else None,
        "optimisation": curves,
        "probes": _probes(results),
        "reward_model": results.card,
        "data_analysis": results.data,
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


def _measures(results: Results, scores: dict[str, list[dict]], verdicts: Verdicts) -> dict[str, list[Comparison]]:
    """By measure, all pairs of policies; nothing where there is no such measure."""
    margin, seed = results.config.smallest_difference, results.config.seed
    return {
        "win rate": judged(verdicts, scores, margin, seed),
        "gold reward": compare(scores, "gold", margin, seed) if scores and results.has_gold else [],
        "proxy reward": compare(scores, "proxy", margin, seed) if scores else [],
    }


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


def _probes(results: Results) -> dict[str, dict] | None:
    """Per policy and group, how many of the checked probes passed, as a `share` with its interval over the probes."""
    found = {}
    for name in results.shown:
        groups = defaultdict(list)
        for row in results.scores.get(f"probes/{name}", []):
            groups[row["group"]] += [] if row["passed"] is None else [row["passed"]]
        found[name] = {
            group: {"passed": sum(passed), "n": len(passed), "share": intervals.proportion(sum(passed), len(passed))}
            for group, passed in groups.items()
            if passed
        }
    return found if any(name.startswith("probes/") for name in results.scores) else None
