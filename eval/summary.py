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
from eval.files import read_jsonl
from rlhf_trl.errors import UserError

BEST_OF = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def summarise(root: Path, config: EvalConfig) -> dict:
    """The content of `summary.json`. Estimates are dicts of `mean` and `ci`, differences of `diff` and `ci`.

    Raises:
        UserError: nothing was scored yet, or there is nothing to compare.
    """
    names = list(config.folders)
    if len(names) < 2:
        raise UserError("a report compares two policies or more; name them in policies")
    reference = names[0]
    scores = {name: read_jsonl(root / "scores" / f"{name}.jsonl") for name in ("base", *names)}
    scores = {name: rows for name, rows in scores.items() if rows}
    for name in names:
        if name not in scores:
            raise UserError(f"{root / 'scores' / name}.jsonl is missing; run 'make score' first")
    samples = json.loads((root / "samples" / "manifest.json").read_text())
    judge = _judge(root, scores, config.seed)
    manifests = {name: _read(Path(folder) / "manifest.json") for name, folder in config.folders.items()}
    manifests = {"reward": _read(Path(config.reward_model_folder) / "manifest.json")} | manifests
    summary = {
        "profile": root.name,
        "seed": samples["seed"],
        "machine": samples["machine"],
        "versions": samples["versions"],
        "data": samples["data"],
        "settings": samples["settings"],
        "reference": reference,
        "prompts": len(scores[reference]),
        "comparisons": judge["pairs"] if judge else compare({name: scores[name] for name in names}, config.seed),
        "policies": {name: _policy(rows, scores[reference], config.seed) for name, rows in scores.items()},
        "judge": judge,
        "optimisation": _optimisation(root, scores, names, config.seed),
        "probes": _probes(root, list(scores)),
        "reward_model": _read(root / "reward-model" / "card.json"),
        "data_analysis": _read(root / "data" / "data.json"),
        "runs": {name: manifest for name, manifest in manifests.items() if manifest},
        "total_seconds": {name: _total_seconds(name, manifests) for name, manifest in manifests.items() if manifest},
    }
    for name in names:
        summary["policies"][name]["train"] = (manifests[name] or {}).get("train")
    summary["flags"] = _flags(summary)
    summary["missing"] = {name: text for name, text in MISSING.items() if not summary[name]}
    if not judge and (manifest := _read(root / "judge" / "manifest.json")) and "reason" in manifest:
        summary["missing"]["judge"] += f" ({manifest['reason']})"
    return summary


MISSING = {
    "judge": "No judge compared the replies",
    "optimisation": "No over-optimisation curves were drawn (no checkpoints and no best-of-n replies)",
    "probes": "No failure-mode probes were put to the policies",
    "reward_model": "There is no reward-model card: `make eval-reward`",
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
                **estimate(stats.mean(difference, seed)),
                "detectable": stats.smallest_difference(difference),
                "p": stats.sign_flip(difference, seed),
            }
            for (a, b), difference in zip(pairs, differences, strict=True)
        ]
    )


def claims(comparisons: list[dict]) -> tuple[list[str], list[str]]:
    """What the corrected tests say, and no more: the policies not shown to be worse than another; a sentence a pair."""
    better = {(c["a"], c["b"]) if c["mean"] > c["equal"] else (c["b"], c["a"]) for c in comparisons if shown(c)}
    names = dict.fromkeys(name for c in comparisons for name in (c["b"], c["a"]))
    unbeaten = [name for name in names if name not in {worse for _, worse in better}]
    sentences = []
    for c in comparisons:
        a, b = c["a"].upper(), c["b"].upper()
        if not shown(c):
            claim = f"No difference in {c['measure']} is shown between {a} and {b}"
        elif c["measure"] == "win rate":
            winner, loser = (a, b) if c["mean"] > c["equal"] else (b, a)
            claim = f"The judge prefers {winner}'s replies to {loser}'s"
        else:
            claim = f"{a}'s {c['measure']} is {'higher' if c['mean'] > c['equal'] else 'lower'} than {b}'s"
        value = f"{a}'s win rate {c['mean']:.2f}" if c["measure"] == "win rate" else f"difference {c['mean']:+.2f}"
        lower, upper = (f"{bound:.2f}" if c["measure"] == "win rate" else f"{bound:+.2f}" for bound in c["ci"])
        sentences.append(
            f"{claim} ({value}, 95% CI {lower} to {upper}; p = {c['p_holm']:.2g} after Holm's correction)."
        )
    return unbeaten, sentences


def shown(comparison: dict) -> bool:
    return comparison["p_holm"] < 0.05


def column(rows: list[dict], name: str) -> np.ndarray:
    """One value a prompt, shape (len(rows),)."""
    return np.array([row[name] for row in rows], dtype=float)


def estimate(value: stats.Estimate | None, name: str = "mean") -> dict | None:
    return value and {name: value.mean, "ci": [value.lower, value.upper]}


def _corrected(comparisons: list[dict]) -> list[dict]:
    corrected = stats.holm([c["p"] for c in comparisons])
    return [c | {"p_holm": p} for c, p in zip(comparisons, corrected, strict=True)]


def _policy(rows: list[dict], reference: list[dict], seed: int) -> dict:
    has_gold = rows[0]["gold"] is not None
    differences = {
        measure: estimate(stats.mean(column(rows, measure) - column(reference, measure), seed), "diff")
        for measure in (("proxy", "gold") if has_gold else ("proxy",))
    }
    has_kl = rows[0]["log_ratio"] is not None
    return {
        "proxy_reward": estimate(stats.mean(column(rows, "proxy"), seed)),
        "gold_reward": estimate(stats.win_rate(column(rows, "gold"), seed)) if has_gold else None,
        "vs_sft": {"gold": None} | differences,
        "kl": estimate(stats.mean(column(rows, "log_ratio"), seed)) if has_kl else None,
        "completion_tokens": estimate(stats.mean(column(rows, "completion_tokens"), seed)),
        "eos_rate": float(column(rows, "finished").mean()),
        "distinct_2": _distinct([row["completion"] for row in rows]),
        "repeated_3": float(np.mean([_repeated(row["completion"]) for row in rows])),
    }


def _judge(root: Path, scores: dict[str, list[dict]], seed: int) -> dict | None:
    """Win rates of all judged pairs, with the tests that the report's claims rest on."""
    manifest = _read(root / "judge" / "manifest.json")
    rows = read_jsonl(root / "judge" / "verdicts.jsonl")
    if not manifest or not rows:
        return None
    by_pair: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if row["a"] in scores and row["b"] in scores:
            by_pair.setdefault((row["a"], row["b"]), []).append(row)
    decided = [
        (order, first) for row in rows for order, first in zip(row["orders"], "ab", strict=True) if order != "tie"
    ]
    pairs = []
    for (a, b), verdicts in by_pair.items():
        won = column(verdicts, "score")
        prompts = [row["prompt"] for row in verdicts]
        chosen = {name: [scores[name][i] for i in prompts] for name in (a, b)}
        margin, longer = (column(chosen[a], key) - column(chosen[b], key) for key in ("proxy", "completion_tokens"))
        ties = int((won == 0.5).sum())
        pairs.append(
            {
                "a": a,
                "b": b,
                "measure": "win rate",
                "equal": 0.5,
                **estimate(stats.win_rate(won, seed)),
                "n": len(won),
                "wins": int((won > 0.5).sum()),
                "ties": ties,
                "losses": int((won < 0.5).sum()),
                "length_controlled": estimate(stats.length_controlled(won, longer)),
                "kappa": estimate(stats.kappa(np.sign(won - 0.5), np.sign(margin))),
                "disagreement": float(np.mean([row["orders"][0] != row["orders"][1] for row in verdicts])),
                "detectable": stats.smallest_detectable(len(won), ties),
                "p": stats.sign_test(won),
            }
        )
    wins_first = sum(winner == first for winner, first in decided)
    return {
        **manifest,
        "pairs": _corrected(pairs),
        "first_place_wins": estimate(stats.proportion(wins_first, len(decided))) if decided else None,
    }


def _optimisation(root: Path, scores: dict[str, list[dict]], names: list[str], seed: int) -> dict | None:
    """Proxy and gold along each run's checkpoints and along best-of-n, all on the same first prompts."""
    folder = root / "scores" / "checkpoints"
    best = read_jsonl(root / "scores" / "best_of.jsonl")
    paths: dict[str, list[dict]] = {}
    start = {"label": names[0], "rows": scores[names[0]], "kl": 0.0}
    for name in names[1:]:
        files = sorted(folder.glob(f"{name}-*.jsonl"), key=lambda path: int(path.stem.rpartition("-")[2]))
        points = [{"label": f"step {path.stem.rpartition('-')[2]}", "rows": read_jsonl(path)} for path in files]
        if points:
            paths[name] = [start, *points, {"label": "final", "rows": scores[name]}]
    if not paths and not best:
        return None
    prompts = min([len(point["rows"]) for path in paths.values() for point in path] or [len(scores[names[0]])])
    measures = [m for m in ("proxy", "gold") if scores[names[0]][0][m] is not None]
    curves = {}
    for name, path in paths.items():
        values = {m: [column(point["rows"][:prompts], m) for point in path] for m in measures}
        kls = [point.get("kl", float(column(point["rows"][:prompts], "log_ratio").mean())) for point in path]
        curves[name] = _curve([point["label"] for point in path], kls, values, seed)
    if best:
        replies = len({row["index"] for row in best}) // len({row["dialogue"] for row in best})
        table = {m: column(best, m).reshape(-1, replies) for m in measures}
        ns = [n for n in BEST_OF if n <= replies]
        weights = {n: stats.best_of(table["proxy"], n) for n in ns}
        values = {m: [(weights[n] * table[m]).sum(1) for n in ns] for m in measures}
        curves["best_of_n"] = _curve([f"n = {n}" for n in ns], [np.log(n) - (n - 1) / n for n in ns], values, seed)
    return {"prompts": prompts, "curves": curves}


def _curve(labels: list[str], kls: list[float], values: dict[str, list[np.ndarray]], seed: int) -> dict:
    """Points of a curve, and where along it the proxy rose while gold fell, by paired intervals."""
    points = [
        {
            "label": label,
            "sqrt_kl": float(np.sqrt(max(kl, 0))),
            **{m: estimate(stats.mean(columns[i], seed)) for m, columns in values.items()},
        }
        for i, (label, kl) in enumerate(zip(labels, kls, strict=True))
    ]
    overoptimised = []
    for i, j in itertools.combinations(range(len(labels)) if "gold" in values else (), 2):
        proxy, gold = (stats.mean(values[m][j] - values[m][i], seed) for m in ("proxy", "gold"))
        if proxy.lower > 0 and gold.upper < 0:
            proxy, gold = estimate(proxy, "diff"), estimate(gold, "diff")
            overoptimised.append({"from": labels[i], "to": labels[j], "proxy": proxy, "gold": gold})
    return {"points": points, "overoptimised": overoptimised}


def _flags(summary: dict) -> list[str]:
    """Sentences on "proxy up, gold down"; where there is no gold, on "proxy up, judge against it"."""
    flags = []
    for name, curve in ((summary["optimisation"] or {}).get("curves") or {}).items():
        if curve["overoptimised"]:
            worst = min(curve["overoptimised"], key=lambda o: o["gold"]["diff"])
            flags.append(
                f"{name}, from {worst['from']} to {worst['to']}: proxy reward {worst['proxy']['diff']:+.2f}, "
                f"gold reward {worst['gold']['diff']:+.2f}"
            )
    for pair in summary["judge"]["pairs"] if summary["judge"] else []:
        policy = summary["policies"][pair["a"]]
        against = pair["b"] == summary["reference"] and pair["ci"][1] < 0.5
        if policy["gold_reward"] is None and against and policy["vs_sft"]["proxy"]["ci"][0] > 0:
            flags.append(
                f"{pair['a'].upper()}: proxy reward up by {policy['vs_sft']['proxy']['diff']:.2f}, yet the judge "
                f"prefers {pair['b'].upper()} (win rate {pair['mean']:.2f})"
            )
    return flags


def _total_seconds(name: str, manifests: dict[str, dict | None]) -> float:
    """Training time of a run and of all that it was made from, each counted once."""
    by_weights = {manifest["sha256"]: other for other, manifest in manifests.items() if manifest}
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
            group: {"passed": sum(passed), "n": len(passed), **estimate(stats.proportion(sum(passed), len(passed)))}
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
