"""Every pair of checkpoints on one measure, as one family of differences paired by prompt (`intervals.family`)."""

import itertools

import numpy as np

from eval.analysis import intervals

# What is compared, in the order in which a report rests on it, with the value at which two are equal
MEASURES = {"win rate": 0.5, "gold reward": 0.0, "proxy reward": 0.0}
# How far a prompt's difference can go; that of the proxy reward has no bounds, and its reach is a usual size
REACH = {
    "win rate": {"reach": 0.5},
    "gold reward": {"reach": 1.0},
    "proxy reward": {"reach": 1.0, "bounded": False},
}


def per_prompt(rows: list[dict], name: str) -> np.ndarray:
    """A column of the replies, averaged over the replies to each prompt, shape (prompts,)."""
    return per_reply(rows, name).mean(axis=1)


def per_reply(rows: list[dict], name: str) -> np.ndarray:
    """A column of the replies, shape (prompts, replies); those to one prompt stand in a row."""
    replies = max((row["reply"] for row in rows), default=0) + 1
    return np.array([row[name] for row in rows], dtype=float).reshape(-1, replies)


def compare(scores: dict[str, list[dict]], column: str, margin: float, seed: int) -> list[dict]:
    """Every policy against each before it, on a column of their scores ("gold", "proxy"); see `_family`."""
    pairs = [(b, a) for a, b in itertools.combinations(scores, 2)]
    values = {name: per_prompt(rows, column) for name, rows in scores.items()}
    differences = np.array([values[a] - values[b] for a, b in pairs]).T
    return _family(pairs, differences, f"{column} reward", margin, seed)


def judged(verdicts: list[dict], scores: dict[str, list[dict]], margin: float, seed: int) -> list[dict]:
    """All judged pairs of policies in `scores` on the win rate; see `_family`. A prompt's score is the mean over the
    orders and the replies that were judged: half a prompt is nobody's win.

    Beside it wins, ties and losses (prompts), the share of the decided that were won, the win rate at equal length,
    and how the verdicts agree with the reward model and between the two orders.
    """
    by_pair: dict[tuple[str, str], list[dict]] = {}
    for verdict in verdicts:
        if verdict["a"] in scores and verdict["b"] in scores:
            by_pair.setdefault((verdict["a"], verdict["b"]), []).append(verdict)
    if not by_pair:
        return []
    table = {pair: _verdicts_by_prompt(rows, scores) for pair, rows in by_pair.items()}
    prompts = sorted({prompt for values in table.values() for prompt in values})
    nothing = np.full(3, np.nan)
    values = np.array([[values.get(prompt, nothing) for values in table.values()] for prompt in prompts])
    pairs = _family(list(table), values[:, :, 0] - 0.5, "win rate", margin, seed)
    for column, (pair, rows) in enumerate(zip(pairs, by_pair.values(), strict=True)):
        won, margins, lengths = values[~np.isnan(values[:, column, 0]), column].T
        wins, losses = int((won > 0.5).sum()), int((won < 0.5).sum())
        decided = won != 0.5
        won_by, preferred = np.sign(won - 0.5)[decided], np.sign(margins)[decided]
        agree = won_by == preferred
        pair |= {
            "wins": wins,
            "ties": len(won) - wins - losses,
            "losses": losses,
            "of_decided": intervals.as_dict(intervals.proportion(wins, wins + losses)) if wins + losses else None,
            "length_controlled": intervals.as_dict(intervals.length_controlled(won, lengths)),
            "agreement": intervals.as_dict(intervals.proportion(int(agree.sum()), len(agree))) if len(agree) else None,
            "kappa": intervals.as_dict(intervals.kappa(won_by, preferred)),
            "disagreement": float(np.mean([row["orders"][0] != row["orders"][1] for row in rows])),
        }
    return pairs


def position_bias(verdicts: list[dict]) -> dict | None:
    """How often the first place wins, of the decided verdicts; the mean over prompts, which are the unit."""
    by_prompt: dict[int, list[bool]] = {}
    for verdict in verdicts:
        for winner, first in zip(verdict["orders"], "ab", strict=True):
            if winner != "tie":
                by_prompt.setdefault(verdict["prompt"], []).append(winner == first)
    return (
        intervals.as_dict(intervals.share(np.array([np.mean(firsts) for firsts in by_prompt.values()])))
        if by_prompt
        else None
    )


def signs(warm: list[dict], greedy: list[dict]) -> list[dict]:
    """Pairs whose difference has one sign at temperature 1 and the other at 0, one of them at least being shown."""
    cold = {(pair["a"], pair["b"]): pair for pair in greedy}
    found = []
    for pair in warm:
        other = cold.get((pair["a"], pair["b"]))
        if other is None or not (pair["better"] or other["better"]):
            continue
        leads = [p["mean"] - p["equal"] for p in (pair, other)]
        if leads[0] * leads[1] < 0:
            found.append({"a": pair["a"], "b": pair["b"], "warm": pair, "greedy": other})
    return found


def _verdicts_by_prompt(rows: list[dict], scores: dict[str, list[dict]]) -> dict[int, np.ndarray]:
    """By prompt: mean score, and mean difference of the judged replies' proxy rewards and lengths in characters."""
    replies = {name: scores[name][-1]["reply"] + 1 for name in (rows[0]["a"], rows[0]["b"])}
    values: dict[int, list[tuple]] = {}
    for row in rows:
        a, b = (scores[name][row["prompt"] * replies[name] + row["reply"]] for name in (row["a"], row["b"]))
        margins = a["proxy"] - b["proxy"], len(a["completion"]) - len(b["completion"])
        values.setdefault(row["prompt"], []).append((row["score"], *margins))
    return {prompt: np.mean(some, axis=0) for prompt, some in values.items()}


def _family(
    pairs: list[tuple[str, str]], differences: np.ndarray, measure: str, margin: float, seed: int
) -> list[dict]:
    """A dict a pair: its value on `measure` with interval, corrected p-value, what could have been detected, tipping
    point, who is `better` where that is shown (else None), and whether the two are `equivalent` within `margin`."""
    equal, family = MEASURES[measure], intervals.family(differences, seed=seed, **REACH[measure])
    return [
        {
            "a": a,
            "b": b,
            "measure": measure,
            "equal": equal,
            "n": int((~np.isnan(column)).sum()),
            "mean": equal + difference.mean,
            "ci": [equal + difference.lower, equal + difference.upper],
            "p": difference.p,
            "detectable": difference.detectable,
            "tipping": difference.tipping,
            "better": (a if difference.lower > 0 else b) if difference.shown else None,
            "equivalent": difference.within(margin),
        }
        for (a, b), difference, column in zip(pairs, family, differences.T, strict=True)
    ]
