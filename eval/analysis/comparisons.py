"""Every pair of checkpoints on one measure, as one family of differences paired by prompt (`intervals.family`)."""

import itertools
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from eval.analysis import intervals
from eval.analysis.intervals import Interval

# What is compared, in the order in which a report rests on it, with the value at which two are equal
MEASURES = {"win rate": 0.5, "gold reward": 0.0, "proxy reward": 0.0}
# How far a prompt's difference can go; that of the proxy reward has no bounds, and its reach is a usual size
REACH = {
    "win rate": {"reach": 0.5},
    "gold reward": {"reach": 1.0},
    "proxy reward": {"reach": 1.0, "bounded": False},
}
Verdicts = dict[tuple[str, str], dict[int, list[dict]]]  # rows of `verdicts.jsonl` by pair (a, b) and prompt


@dataclass(frozen=True, kw_only=True)
class Comparison(Interval):
    """Checkpoint `a` against `b` on a measure, whose mean over `n` prompts is `equal` where they are equal."""

    a: str
    b: str
    measure: str
    equal: float
    n: int
    p: float  # corrected, as the two below
    detectable: float | None
    tipping: float | None
    better: str | None  # of the two, where that is shown
    equivalent: bool  # within the smallest difference that matters
    verdicts: dict | None = None  # of a win rate: what else the judge's verdicts come to, see `judged`

    @property
    def pair(self) -> str:
        return f"{self.a} against {self.b}"

    @property
    def unit(self) -> str:
        return self.measure if self.equal else f"{self.measure} difference"


def per_prompt(rows: list[dict], name: str) -> np.ndarray:
    """A column of the replies, averaged over the replies to each prompt, shape (prompts,)."""
    return per_reply(rows, name).mean(axis=1)


def per_reply(rows: list[dict], name: str) -> np.ndarray:
    """A column of the replies, shape (prompts, replies); those to one prompt stand in a row."""
    replies = max((row["reply"] for row in rows), default=0) + 1
    return np.array([row[name] for row in rows], dtype=float).reshape(-1, replies)


def by_prompt(verdicts: list[dict]) -> Verdicts:
    """Verdicts by pair and prompt, in the order of the judge's file."""
    grouped: Verdicts = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        grouped[verdict["a"], verdict["b"]][verdict["prompt"]].append(verdict)
    return dict(grouped)


def compare(scores: dict[str, list[dict]], column: str, margin: float, seed: int) -> list[Comparison]:
    """Every policy against each before it, on a column of their scores ("gold", "proxy")."""
    pairs = [(b, a) for a, b in itertools.combinations(scores, 2)]
    values = {name: per_prompt(rows, column) for name, rows in scores.items()}
    differences = np.array([values[a] - values[b] for a, b in pairs]).T
    return _family(pairs, differences, f"{column} reward", margin, seed)


def judged(verdicts: Verdicts, scores: dict[str, list[dict]], margin: float, seed: int) -> list[Comparison]:
    """All judged pairs of policies in `scores` on the win rate. A prompt's score is the mean over the orders and the
    replies that were judged: half a prompt is nobody's win.

    `verdicts` of each has wins, ties and losses (prompts), the share of the decided that were won, the win rate at
    equal length, and how the verdicts agree with the reward model and between the two orders.
    """
    verdicts = {pair: prompts for pair, prompts in verdicts.items() if scores.keys() >= {*pair}}
    if not verdicts:
        return []
    replies = {name: rows[-1]["reply"] + 1 for name, rows in scores.items()}

    def facts(pair: tuple[str, str], row: dict) -> tuple[float, float, int]:
        """Score, and differences of the judged replies' proxy rewards and lengths in characters."""
        a, b = (scores[name][row["prompt"] * replies[name] + row["reply"]] for name in pair)
        return row["score"], a["proxy"] - b["proxy"], len(a["completion"]) - len(b["completion"])

    table = {
        pair: {prompt: np.mean([facts(pair, row) for row in rows], axis=0) for prompt, rows in prompts.items()}
        for pair, prompts in verdicts.items()
    }
    prompts = sorted(set().union(*table.values()))
    nothing = np.full(3, np.nan)
    values = np.array([[means.get(prompt, nothing) for means in table.values()] for prompt in prompts])
    pairs = _family(list(table), values[:, :, 0] - 0.5, "win rate", margin, seed)
    for column, of_pair in enumerate(verdicts.values()):
        won, margins, lengths = values[~np.isnan(values[:, column, 0]), column].T
        wins, losses = int((won > 0.5).sum()), int((won < 0.5).sum())
        decided = won != 0.5
        won_by, preferred = np.sign(won - 0.5)[decided], np.sign(margins)[decided]
        orders = [row["orders"] for rows in of_pair.values() for row in rows]
        said = {
            "wins": wins,
            "ties": len(won) - wins - losses,
            "losses": losses,
            "of_decided": intervals.proportion(wins, wins + losses) if wins + losses else None,
            "length_controlled": intervals.length_controlled(won, lengths),
            "agreement": intervals.proportion(int((won_by == preferred).sum()), len(won_by)) if len(won_by) else None,
            "kappa": intervals.kappa(won_by, preferred),
            "disagreement": float(np.mean([first != second for first, second in orders])),
        }
        pairs[column] = replace(pairs[column], verdicts=said)
    return pairs


def position_bias(verdicts: Verdicts) -> Interval | None:
    """How often the first place wins, of the decided verdicts; the mean over prompts, which are the unit."""
    firsts = defaultdict(list)
    for prompts in verdicts.values():
        for prompt, rows in prompts.items():
            winners = [(winner, first) for row in rows for winner, first in zip(row["orders"], "ab", strict=True)]
            firsts[prompt] += [winner == first for winner, first in winners if winner != "tie"]
    shares = [np.mean(won) for won in firsts.values() if won]
    return intervals.share(np.array(shares)) if shares else None


def worst_case(verdicts: Verdicts, failed: dict[str, list[list[int]]]) -> dict[str, list[float]]:
    """Of each pair ("a:b") with places (prompt, reply) that failed, the win rates if all these had been lost, and all
    been won."""
    bounds: dict[str, list[float]] = {}
    for (pair, places), end in itertools.product(failed.items(), (0.0, 1.0)):
        known = verdicts.get(tuple(pair.split(":")), {})
        scores = {prompt: [row["score"] for row in rows] for prompt, rows in known.items()}
        for prompt, _ in places:
            scores.setdefault(prompt, []).append(end)
        bounds.setdefault(pair, []).append(float(np.mean([np.mean(some) for some in scores.values()])))
    return bounds


def signs(warm: list[Comparison], greedy: list[Comparison]) -> list[tuple[Comparison, Comparison]]:
    """Pairs whose difference has one sign at temperature 1 and the other at 0, one of them at least being shown."""
    cold = {(other.a, other.b): other for other in greedy}
    both = [(pair, cold[pair.a, pair.b]) for pair in warm if (pair.a, pair.b) in cold]
    turned = [(pair, other) for pair, other in both if (pair.mean - pair.equal) * (other.mean - other.equal) < 0]
    return [(pair, other) for pair, other in turned if pair.better or other.better]


def _family(
    pairs: list[tuple[str, str]], differences: np.ndarray, measure: str, margin: float, seed: int
) -> list[Comparison]:
    equal, family = MEASURES[measure], intervals.family(differences, seed=seed, **REACH[measure])
    return [
        Comparison(
            **vars(difference) | {name: getattr(difference, name) + equal for name in ("mean", "lower", "upper")},
            a=a,
            b=b,
            measure=measure,
            equal=equal,
            n=int((~np.isnan(column)).sum()),
            better=(a if difference.lower > 0 else b) if difference.shown else None,
            equivalent=difference.within(margin),
        )
        for (a, b), difference, column in zip(pairs, family, differences.T, strict=True)
    ]
