"""The numbers of a report, from the files that the other commands left; what is not there is None.

Everything is computed per prompt: differences are paired, and one family of tests, Holm-corrected, decides
which claims the report may make.
"""

import itertools
import json
from pathlib import Path

import numpy as np

from eval import stats
from eval.config import EvalConfig
from eval.curves import optimisation
from eval.files import read_jsonl
from rlhf_trl.errors import UserError


def summarise(root: Path, config: EvalConfig) -> dict:
    """The content of `summary.json`. Estimates are dicts of `mean` and `ci`, differences of `diff` and `ci`.

    Raises:
        UserError: nothing was scored yet, with other models, or there is nothing to compare.
    """
    names = list(config.folders)
    if len(names) < 2:
        raise UserError("a report compares two policies or more; name them in policies")
    scores = {name: read_jsonl(root / "scores" / f"{name}.jsonl") for name in (*names, "base")}
    for name in names:
        if not scores[name]:
            raise UserError(f"{root / 'scores' / name}.jsonl is missing; run 'make score' first")
    samples, scored = (_read(root / stage / "manifest.json") for stage in ("samples", "scores"))
    if scored["reference"]["path"] != config.folders[names[0]]:
        raise UserError(
            f"the scores' reference is {scored['reference']['path']}, not {names[0]}; run 'make score' again"
        )
    policies = {name: scores[name] for name in names}
    judge = _read(root / "judge" / "manifest.json") or {}
    verdicts = read_jsonl(root / "judge" / "verdicts.jsonl")
    pairs = judged(verdicts, policies, config.seed)
    card = _read(root / "reward-model" / "card.json")
    if card and card["manifest"]["reward_model"]["sha256"] != scored["reward_model"]["sha256"]:
        card = None  # of another reward model
    curves = _curves(root, policies, verdicts, config.seed)
    manifests = {name: _read(Path(folder) / "manifest.json") for name, folder in config.folders.items()}
    manifests = {"reward": _read(Path(config.reward_model_folder) / "manifest.json")} | manifests
    runs = {name: manifest for name, manifest in manifests.items() if manifest}
    shown_policies = ({"base": scores["base"]} if scores["base"] else {}) | policies
    summary = {
        "profile": root.name,
        "seed": samples["seed"],
        "machine": samples["machine"],
        "versions": samples["versions"],
        "data": samples["data"],
        "settings": samples["settings"],
        "reference": names[0],
        "one_start": _one_start(names, runs),
        "prompts": len(scores[names[0]]),
        "comparisons": pairs or compare(policies, config.seed),
        "policies": {
            name: _policy(rows, scores[names[0]], config.seed)
            | {"train": runs[name]["train"] if name in runs else None}
            for name, rows in shown_policies.items()
        },
        "judge": judge | {"pairs": pairs, "first_place_wins": position_bias(verdicts, config.seed)} if pairs else None,
        "optimisation": curves,
        "flags": _flags(curves),
        "probes": _probes(root, list(shown_policies)),
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


def compare(scores: dict[str, list[dict]], seed: int) -> list[dict]:
    """Every pair of policies, on the gold reward where there is one, else on the proxy.

    Differences are paired by prompt; p-values are of a sign-flip test, Holm-corrected over all pairs.
    """
    measure = "gold" if next(iter(scores.values()))[0]["gold"] is not None else "proxy"
    pairs = [(b, a) for a, b in itertools.combinations(scores, 2)]
    differences = [column(scores[a], measure) - column(scores[b], measure) for a, b in pairs]
    return _corrected(
        [
            {
                "a": a,
                "b": b,
                "measure": f"{measure} reward",
                "equal": 0.0,
                **stats.as_dict(stats.mean(difference, seed)),
                "detectable": stats.smallest_difference(difference),
                "lead": float(difference.mean()),
                "p": stats.sign_flip(difference, seed),
            }
            for (a, b), difference in zip(pairs, differences, strict=True)
        ]
    )


def claims(comparisons: list[dict]) -> tuple[list[str], list[str]]:
    """What the corrected tests say, and no more: the policies not shown to be worse than another; a sentence a pair."""
    names = dict.fromkeys(name for c in comparisons for name in (c["b"], c["a"]))
    beaten = {c["a"] if c["better"] == c["b"] else c["b"] for c in comparisons if c["better"]}
    sentences = []
    for c in comparisons:
        a, b = c["a"].upper(), c["b"].upper()
        lower, upper = c["ci"]
        if c["measure"] == "win rate":
            mean, won, lost = c["mean"], c["wins"], c["losses"]
            if c["better"] == c["b"]:  # the winner's view
                a, b, mean, lower, upper, won, lost = b, a, 1 - mean, 1 - upper, 1 - lower, lost, won
            claim = f"The judge prefers {a}'s replies to {b}'s" if c["better"] else None
            value = f"{a} won {won} prompts and lost {lost}; its win rate {mean:.2f}, 95% CI {lower:.2f} to {upper:.2f}"
        else:
            claim = f"{a}'s {c['measure']} is {'higher' if c['better'] == c['a'] else 'lower'} than {b}'s"
            value = f"difference {c['mean']:+.2f}, 95% CI {lower:+.2f} to {upper:+.2f}"
        if not c["better"]:
            claim = f"No difference in {c['measure']} is shown between {a} and {b}"
        sentences.append(f"{claim} ({value}; p = {c['p_holm']:.2g} after Holm's correction).")
    return [name for name in names if name not in beaten], sentences


def headline(comparisons: list[dict], unbeaten: list[str]) -> str:
    """The report's first sentence: the policy that is better than all others, or those not shown to be worse."""
    by = {
        "win rate": "By the judge",
        "gold reward": "By the gold reward",
        "proxy reward": "By the proxy reward, which PPO and GRPO are trained on",
    }[comparisons[0]["measure"]]
    names = {name for c in comparisons for name in (c["a"], c["b"])}
    for name in unbeaten:
        if sum(c["better"] == name for c in comparisons) == len(names) - 1:
            return f"{by}, {name.upper()} is better than every other policy compared."
    if len(unbeaten) == len(names):
        return f"{by}, no policy is shown to be better than another."
    return f"{by}, no other policy is shown to be better than {' or '.join(map(str.upper, unbeaten))}."


def column(rows: list[dict], name: str) -> np.ndarray:
    """One value a prompt, shape (len(rows),)."""
    return np.array([row[name] for row in rows], dtype=float)


def _corrected(comparisons: list[dict]) -> list[dict]:
    """With Holm's p-values over all of them, and who is better where the corrected test shows it, else None."""
    corrected = stats.holm([c["p"] for c in comparisons]) if comparisons else []
    return [
        c | {"p_holm": p, "better": (c["a"] if c["lead"] > 0 else c["b"]) if p < 0.05 else None}
        for c, p in zip(comparisons, corrected, strict=True)
    ]


def _policy(rows: list[dict], reference: list[dict], seed: int) -> dict:
    has_gold = rows[0]["gold"] is not None
    differences = {
        measure: stats.as_dict(stats.mean(column(rows, measure) - column(reference, measure), seed), "diff")
        for measure in (("proxy", "gold") if has_gold else ("proxy",))
    }
    has_kl = rows[0]["log_ratio"] is not None
    return {
        "proxy_reward": stats.as_dict(stats.mean(column(rows, "proxy"), seed)),
        "gold_reward": stats.as_dict(stats.win_rate(column(rows, "gold"), seed)) if has_gold else None,
        "vs_sft": {"gold": None} | differences,
        "kl": stats.as_dict(stats.mean(column(rows, "log_ratio"), seed)) if has_kl else None,
        "completion_tokens": stats.as_dict(stats.mean(column(rows, "completion_tokens"), seed)),
        "eos_rate": float(column(rows, "finished").mean()),
        "distinct_2": _distinct([row["completion"] for row in rows]),
        "repeated_3": float(np.mean([_repeated(row["completion"]) for row in rows])),
    }


def judged(verdicts: list[dict], scores: dict[str, list[dict]], seed: int) -> list[dict]:
    """Win rates of all judged pairs of policies in `scores`, with the sign tests that claims rest on."""
    by_pair: dict[tuple[str, str], list[dict]] = {}
    for verdict in verdicts:
        if verdict["a"] in scores and verdict["b"] in scores:
            by_pair.setdefault((verdict["a"], verdict["b"]), []).append(verdict)
    pairs = []
    for (a, b), rows in by_pair.items():
        won = column(rows, "score")
        replies = {name: [scores[name][row["prompt"]] for row in rows] for name in (a, b)}
        margin = column(replies[a], "proxy") - column(replies[b], "proxy")
        characters = {name: np.array([len(reply["completion"]) for reply in replies[name]]) for name in (a, b)}
        wins, losses = int((won > 0.5).sum()), int((won < 0.5).sum())
        decided = won != 0.5
        agree = np.sign(won - 0.5)[decided] == np.sign(margin)[decided]
        pairs.append(
            {
                "a": a,
                "b": b,
                "measure": "win rate",
                "equal": 0.5,
                **stats.as_dict(stats.win_rate(won, seed)),
                "n": len(won),
                "wins": wins,
                "ties": len(won) - wins - losses,
                "losses": losses,
                "length_controlled": stats.as_dict(stats.length_controlled(won, characters[a] - characters[b])),
                "agreement": stats.as_dict(stats.proportion(int(agree.sum()), len(agree))) if len(agree) else None,
                "kappa": stats.as_dict(stats.kappa(np.sign(won - 0.5)[decided], np.sign(margin)[decided])),
                "disagreement": float(np.mean([row["orders"][0] != row["orders"][1] for row in rows])),
                "detectable": stats.smallest_detectable(len(won), len(won) - wins - losses),
                "lead": wins - losses,  # what the sign test is about; the mean can lean the other way
                "p": stats.sign_test(won),
            }
        )
    return _corrected(pairs)


def position_bias(verdicts: list[dict], seed: int) -> dict | None:
    """How often the first place wins, of the decided verdicts; the mean over prompts, which are the unit."""
    by_prompt: dict[int, list[bool]] = {}
    for verdict in verdicts:
        for winner, first in zip(verdict["orders"], "ab", strict=True):
            if winner != "tie":
                by_prompt.setdefault(verdict["prompt"], []).append(winner == first)
    shares = [np.mean(firsts) for firsts in by_prompt.values()]
    return stats.as_dict(stats.win_rate(shares, seed)) if shares else None


def _flags(optimisation: dict) -> list[str]:
    """Sentences on "proxy up, true preference down": of each curve the greatest fall that is shown."""
    worst: dict[str, dict] = {}
    for contrast in sorted(optimisation["overoptimised"], key=lambda c: c["true"]):
        worst.setdefault(contrast["curve"], contrast)
    truth = {"gold": "gold reward", "judge": "judge's score"}[optimisation["truth"]]
    return [
        f"{name}, from {c['from']} to {c['to']}: proxy reward {c['proxy']:+.2f}, {truth} {c['true']:+.2f} "
        f"(p = {c['p_holm']:.2g} after Holm's correction)"
        for name, c in worst.items()
    ]


def _curves(root: Path, policies: dict[str, list[dict]], verdicts: list[dict], seed: int) -> dict:
    checkpoints: dict[str, dict[str, list[dict]]] = {}
    for path in (root / "scores" / "checkpoints").glob("*.jsonl"):
        name, _, step = path.stem.rpartition("-")
        if name in policies:
            checkpoints.setdefault(name, {})[step] = read_jsonl(path)
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for verdict in verdicts:
        scores.setdefault((verdict["a"], verdict["b"]), {})[verdict["prompt"]] = verdict["score"]
    return optimisation(policies, checkpoints, read_jsonl(root / "scores" / "best_of.jsonl"), scores, seed)


def _one_start(names: list[str], runs: dict[str, dict]) -> bool:
    """Whether all other policies were trained from the reference."""
    if not runs.keys() >= set(names):
        return False
    reference, *others = (runs[name] for name in names)
    return all(other["parents"]["model"]["sha256"] == reference["sha256"] for other in others)


def _total_seconds(name: str, manifests: dict[str, dict]) -> float:
    """Training time of a run and of all that it was made from, each counted once."""
    by_weights = {manifest["sha256"]: other for other, manifest in manifests.items()}
    needed, todo = set(), [name]
    while todo:
        current = todo.pop()
        needed.add(current)
        parents = [by_weights.get(parent["sha256"]) for parent in manifests[current]["parents"].values()]
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
                **stats.as_dict(stats.proportion(sum(passed), len(passed))),
            }
            for group, passed in groups.items()
        }
    return result


def _distinct(texts: list[str]) -> float | None:
    """Distinct word bigrams over all word bigrams (Li et al. 2016, arXiv 1510.03055)."""
    grams = [gram for text in texts for gram in itertools.pairwise(text.split())]
    return len(set(grams)) / len(grams) if grams else None


def _repeated(text: str) -> float:
    """Share of a reply's word trigrams that it has had before (Welleck et al. 2020, arXiv 1908.04319)."""
    words = text.split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
