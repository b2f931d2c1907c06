"""What a report may say: each sentence follows from the tests, and each has checkpoints of one run as its subject.

One run cannot tell what its methods would do with another seed or other settings, and so says nothing of methods.
"""

from collections.abc import Sequence

from eval.analysis.comparisons import Comparison
from eval.analysis.conditions import listed
from eval.analysis.intervals import RESAMPLES

NO_VERDICT = (
    "This is about checkpoints, each trained once, with settings that this comparison did not tune. It is no verdict "
    "on the methods that made them: with another seed or other settings the order can be another one."
)
BY = {
    "win rate": "By the judge",
    "gold reward": "By the gold reward",
    "proxy reward": "By the proxy reward, which the checkpoints may have been trained on",
}


def headline(comparisons: list[Comparison]) -> str:
    """The report's first sentence: the checkpoint that is better than all others, or what else is shown of them."""
    by, names = BY[comparisons[0].measure], _names(comparisons)
    wins = [(pair.better, pair.b if pair.better == pair.a else pair.a) for pair in comparisons]
    wins = [(winner, loser) for winner, loser in wins if winner]
    for name in names:
        if sum(winner == name for winner, _ in wins) == len(names) - 1:
            return f"{by}, checkpoint {name} gives better replies than every other checkpoint compared."
    if not wins:
        every = len(comparisons) == len(names) * (len(names) - 1) / 2
        if every and all(pair.equivalent for pair in comparisons):
            return f"{by}, all checkpoints compared are equivalent."
        return f"{by}, no checkpoint is shown to be better than another{'' if every else ' in the pairs compared'}."
    unbeaten = [name for name in names if name not in {loser for _, loser in wins}]
    if not unbeaten:
        beats = listed(f"{winner} is better than {loser}" for winner, loser in wins)
        return f"{by}, every checkpoint is beaten by another, so they have no order: {beats}."
    peers = [pair for pair in comparisons if {pair.a, pair.b} <= set(unbeaten)]
    alike = "; they are equivalent to each other" if peers and all(pair.equivalent for pair in peers) else ""
    verb = "is" if len(unbeaten) == 1 else "are"
    said = f"no checkpoint is shown to be the best: {listed(unbeaten)} {verb} not shown to be worse than another"
    return f"{by}, {said}{alike}."


def claims(comparisons: list[Comparison], margin: float, same_method: Sequence[tuple[str, str]] = ()) -> list[str]:
    """A sentence a pair, and one for each two checkpoints that are of one method."""
    return [_claim(pair, margin) for pair in comparisons] + [
        f"Checkpoints {a} and {b} come from the same settings with another seed: what sets them apart is the chance of "
        "training"
        for a, b in same_method
    ]


def conditions(checked: list[dict]) -> list[str]:
    """A sentence for each condition of a matched comparison."""
    return [f"{'Holds' if each['holds'] else '**Does not hold**'}: {each['what']}" for each in checked]


def _claim(pair: Comparison, margin: float) -> str:
    a, b = (pair.a, pair.b) if pair.better != pair.b else (pair.b, pair.a)
    value = _value(pair, a)
    if pair.better and pair.measure == "win rate":
        said = f"The judge prefers the replies of checkpoint {a} to those of {b} ({value})"
    elif pair.better:
        said = f"Checkpoint {a} has a higher {pair.measure} than {b} ({value})"
    else:
        said = f"No difference in {pair.measure} is shown between checkpoints {a} and {b} ({value})"
    if pair.equivalent:
        said += f"; they are equivalent: what is left of a difference is smaller than {margin:g}"
    elif not pair.better and pair.detectable is not None:
        said += f"; a true one of {pair.detectable:.2f} would have been shown with 80% power"
    return said


def _value(pair: Comparison, a: str) -> str:
    """The numbers behind a claim, as `a` has them."""
    numbers = (pair.mean, pair.lower, pair.upper)
    if a != pair.a:
        numbers = (2 * pair.equal - number for number in (pair.mean, pair.upper, pair.lower))
    if pair.measure != "win rate":
        return "difference {:+.2f}, {:+.2f} to {:+.2f}; ".format(*numbers) + p_value(pair.p)
    won, decided = pair.verdicts["wins" if a == pair.a else "losses"], pair.verdicts["wins"] + pair.verdicts["losses"]
    said = f"{won} of {decided} decided prompts won" if decided else "all prompts tied"
    return "win rate {:.2f}, {:.2f} to {:.2f}; ".format(*numbers) + f"{said}; {p_value(pair.p)}"


def changes(signs: list[tuple[Comparison, Comparison]]) -> list[str]:
    """A sentence for each pair whose order is another one at temperature 0 (the second of each) than at 1."""
    sentences = []
    for warm, greedy in signs:
        ahead, behind = (warm.a, warm.b) if warm.mean > warm.equal else (warm.b, warm.a)
        values = [
            _value(pair, name) + ("" if pair.better else "; not shown")
            for pair, name in ((warm, ahead), (greedy, behind))
        ]
        sentences.append(
            f"The order of checkpoints {ahead} and {behind} changes with the temperature: sampled at 1, {ahead} is "
            f"ahead ({values[0]}); greedily, {behind} is ({values[1]})"
        )
    return sentences


def falls(contrasts: list[dict], truth: str) -> list[str]:
    """A sentence for each curve whose true preference is shown to fall: of each the greatest fall."""
    worst: dict[str, dict] = {}
    for contrast in sorted(contrasts, key=lambda c: c["true"].mean):
        worst.setdefault(contrast["curve"], contrast)
    sentences = []
    for name, contrast in worst.items():
        proxy, true = contrast["proxy"], contrast["true"]
        kind = "over-optimised" if proxy.lower > 0 else "worse without a rise of the proxy being shown"
        sentences.append(
            f"{name.replace('_', '-')}, from {contrast['from']} to {contrast['to']}: {kind} (proxy reward "
            f"{proxy.mean:+.2f}, {truth} {true.mean:+.2f}, {true.lower:+.2f} to {true.upper:+.2f}; {p_value(true.p)})"
        )
    return sentences


def cautions(judge: dict) -> list[str]:
    """What a judge's verdicts do not bear: a number of prompts not fixed beforehand, requests that failed."""
    said = []
    if judge.get("looks"):
        seen = ", ".join(f"{look['seen']} of {look['planned']} comparisons" for look in judge["looks"])
        said.append(
            f"Verdicts were on view when the judge was asked for more (after {seen}): the number of prompts was not "
            "fixed beforehand. If going on depended on what they said, the p-values are too small and the intervals "
            "too narrow"
        )
    if judge.get("pending"):
        said.append(
            f"{judge['pending']} requests were not made for want of budget or key (`make judge` goes on). Who goes on "
            "after reading this no longer fixes the number of prompts beforehand"
        )
    for pair, kinds in judge.get("failures", {}).items():
        told = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        caution = f"{pair}: {sum(kinds.values())} requests failed ({told}) and are in no number"
        if bounds := judge["worst_case"].get(pair):
            lost, won = bounds
            caution += f"; were all of them lost or won, the win rate would be {lost:.2f} or {won:.2f}"
        said.append(caution)
    return said


def p_value(p: float) -> str:
    """A p-value, which no number of resamples shows to be smaller than one of them."""
    floor = 1 / (RESAMPLES + 1)
    return f"p < {floor:.0e}".replace("e-0", "e-") if p <= floor else f"p = {p:.2g}"


def _names(comparisons: list[Comparison]) -> list[str]:
    return list(dict.fromkeys(name for pair in comparisons for name in (pair.b, pair.a)))
