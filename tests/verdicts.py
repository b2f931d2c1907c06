"""Verdicts and replies of a made-up judge, for comparisons of a few checkpoints."""

from eval.analysis import comparisons
from eval.analysis.comparisons import Comparison, by_prompt

MARGIN = 0.05


def verdict(prompt: int, score: float, a: str = "ppo", b: str = "sft") -> dict:
    orders = {1: ["a", "a"], 0.75: ["a", "tie"], 0.5: ["tie", "tie"], 0: ["b", "b"]}[score]
    return {"a": a, "b": b, "prompt": prompt, "reply": 0, "orders": orders, "score": score}


def replies(*names: str, prompts: int = 100) -> dict[str, list[dict]]:
    reply = {"reply": 0, "proxy": 0.0, "completion": "x"}
    return {name: [reply] * prompts for name in names}


def judged(verdicts: list[dict], scores: dict[str, list[dict]]) -> list[Comparison]:
    return comparisons.judged(by_prompt(verdicts), scores, MARGIN, seed=0)


def rounds(*beaten: tuple[str, str]) -> list[Comparison]:
    """Comparisons in which the first of each pair beats the second on all of 50 prompts."""
    names = dict.fromkeys(name for pair in beaten for name in pair)
    verdicts = [verdict(i, 1, *pair) for pair in beaten for i in range(50)]
    return judged(verdicts, replies(*names))
