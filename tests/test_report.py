"""The report says what the files of the run say: change them, and every number and claim changes."""

import itertools
import re

import numpy as np
import pytest

from eval import stats
from eval.config import EvalConfig
from eval.curves import optimisation
from eval.files import write_json, write_jsonl
from eval.report import write_report
from eval.summary import claims, compare, judged, position_bias, summarise
from rlhf_trl.errors import UserError

NAMES = ["sft", "ppo", "dpo"]


def made_up_run(root, seed: int, prompts: int, ppo_wins: float, stages=("judge", "optimisation", "probes", "cards")):
    """Files of a run with gold rewards: ppo wins against sft on that share of prompts, dpo equals sft in law."""
    rng = np.random.default_rng(seed)
    gold = {name: rng.random(prompts) < 0.3 for name in NAMES}
    gold["ppo"] |= rng.random(prompts) < ppo_wins
    for name in ("base", *NAMES):
        values = gold.get(name, np.zeros(prompts))
        write_jsonl(root / f"scores/{name}.jsonl", [row(rng, i, float(value)) for i, value in enumerate(values)])
    data = {"dataset": f"data{seed}", "prompts": prompts, "sha256": f"{seed}" * 64}
    versions = {"trl": f"1.{seed}"}
    machine = {"cpu": f"cpu{seed}", "threads": 10 + seed, "gpus": []}
    settings = {"temperature": 1.0 + seed}
    write_json(
        root / "samples/manifest.json",
        {"seed": seed, "data": data, "versions": versions, "machine": machine, "settings": settings},
    )
    models = {"reference": {"path": str(root / "sft")}, "reward_model": {"sha256": "reward"}}
    write_json(root / "scores/manifest.json", models)
    for i, name in enumerate(["reward", *NAMES]):
        manifest = {
            "seed": 70 + seed,
            "created": f"202{seed}",
            "data": {"rows": 1000 + seed, "dataset": "d", "sha256": f"{seed}{i}" * 32},
            "sha256": name,
            "parents": {"model": {"path": "base", "sha256": None if name == "sft" else "sft"}},
            "train": {"seconds": 100.5 * seed + i, "peak_memory_mb": 500 * seed + i, "tokens": 77 * seed + i},
        }
        write_json(root / name / "manifest.json", manifest)
    if "judge" in stages:
        pairs = [(a, b) for b, a in itertools.combinations(NAMES, 2)]
        verdicts = [
            {"a": a, "b": b, "prompt": i, "orders": orders, "score": {"a": 1, "b": 0, "tie": 0.5}[orders[0]]}
            for a, b in pairs
            for i in range(prompts)
            for orders in [["a" if gold[a][i] > gold[b][i] else "b" if gold[a][i] < gold[b][i] else "tie"] * 2]
        ]
        write_jsonl(root / "judge/verdicts.jsonl", verdicts)
        failures = {"ppo:sft": {"unparsable": 5 * seed}}
        write_json(root / "judge/manifest.json", {"judge": "gold", "failures": failures, "pending": 11 * seed})
    if "optimisation" in stages:
        best = [row(rng, i // 4, float(rng.random() < 0.5), index=i) for i in range(12 * seed)]
        write_jsonl(root / "scores/best_of.jsonl", best)
        for step in (seed, 2 * seed):
            write_jsonl(root / f"scores/checkpoints/ppo-{step}.jsonl", [row(rng, i, i % 2) for i in range(3 * seed)])
    if "probes" in stages:
        for name in ("base", *NAMES):
            probes = [{"group": "g", "passed": bool(rng.random() < 0.5)} for _ in range(5 + seed)]
            write_jsonl(root / f"scores/probes/{name}.jsonl", probes)
    if "cards" in stages:
        card = {"accuracy": 0.6 + seed / 100, "ci": [0.5 + seed / 100, 0.7 + seed / 100], "n": 90 + seed}
        card |= {"log_loss": 0.6 + seed / 50, "ece": seed / 70, "manifest": {"reward_model": {"sha256": "reward"}}}
        card["length"] = {"pick_longer": {"accuracy": seed / 9}, "pick_shorter": {"accuracy": seed / 8}}
        write_json(root / "reward-model/card.json", card)
        write_json(root / "data/data.json", {"rows": 5})
    return EvalConfig(output_dir=str(root), policies=NAMES, reward_model=str(root / "reward"), seed=seed)


def row(rng, i: int, gold: float, index: int | None = None) -> dict:
    words = " ".join(rng.choice(["a", "b", "c", "d", "e"], int(rng.integers(3, 12))))
    return {
        "index": i if index is None else index,
        "dialogue": f"\n\nHuman: {i}\n\nAssistant:",
        "completion": words,
        "finished": bool(rng.random() < 0.8),
        "proxy": 2 * gold + rng.normal(),
        "gold": gold,
        "log_ratio": rng.normal(1, 0.3),
        "completion_tokens": len(words.split()),
    }


def test_no_number_is_typed_in(tmp_path):
    """Two runs that share no input share no number, but for those that name a method or a level."""
    texts = []
    for seed, prompts, wins in ((3, 60, 0.5), (4, 83, 0.9)):
        root = tmp_path / f"run{'ab'[seed - 3]}"
        report = write_report(made_up_run(root, seed, prompts, wins))
        texts.append((report / "ANALYSIS.md").read_text())
    fixed = ("distinct-2", "3-grams", "n - 1", "95%", "5%", "80%", "SHA-256", "3 pairs")
    lines = []
    for text in texts:
        for word in fixed:
            text = text.replace(word, "")
        lines.append([re.findall(r"-?\d[\d.]*\d|\d", line) for line in text.splitlines()])
    assert len(lines[0]) == len(lines[1])
    # sft's distance from itself is 0 in every run, and so are the marks of best-of-n
    known = {"0.00", "-0.00", "0", "1", "2", "4"}
    same = [(a, text) for a, b, text in zip(*lines, texts[0].splitlines(), strict=True) if a and a == b]
    typed = [(numbers, text) for numbers, text in same if not set(numbers) <= known]
    assert typed == [], typed
    assert sum(map(len, lines[0])) > 150


def test_numbers_and_claims_follow_the_files(tmp_path):
    config = made_up_run(tmp_path / "run", 3, 100, ppo_wins=0.6)
    summary = summarise(tmp_path / "run", config)
    ppo = next(c for c in summary["comparisons"] if (c["a"], c["b"]) == ("ppo", "sft"))
    assert ppo["wins"] + ppo["ties"] + ppo["losses"] == ppo["n"] == 100
    assert ppo["mean"] == pytest.approx((ppo["wins"] + ppo["ties"] / 2) / 100)
    difference = summary["policies"]["ppo"]["vs_sft"]["gold"]["diff"]
    assert 2 * (ppo["mean"] - 0.5) == pytest.approx(difference)
    assert summary["total_seconds"]["ppo"] == (100.5 * 3 + 2) + (100.5 * 3 + 1)  # its own and sft's
    unbeaten, sentences = claims(summary["comparisons"])
    assert unbeaten == ["ppo"]
    score = f"PPO won {ppo['wins']} prompts and lost {ppo['losses']}; its win rate {ppo['mean']:.2f}"
    assert sentences[0].startswith(f"The judge prefers PPO's replies to SFT's ({score}")
    assert sentences[1].startswith("No difference in win rate is shown between DPO and SFT")
    assert sentences[2].startswith("The judge prefers PPO's replies to DPO's (PPO won")

    text = (write_report(config) / "ANALYSIS.md").read_text()
    assert "**By the judge, PPO is better than every other policy compared.**" in text
    for sentence in sentences:
        assert sentence in text
    made_up_run(tmp_path / "run", 3, 100, ppo_wins=0.0)
    text = (write_report(config) / "ANALYSIS.md").read_text()
    assert "**By the judge, no policy is shown to be better than another.**" in text


def test_missing_stages_are_said_to_be_missing(tmp_path):
    config = made_up_run(tmp_path, 3, 30, 0.5, stages=())
    report = write_report(config)
    for page in ("ANALYSIS.md", "report.html"):
        text = (report / page).read_text()
        for words in ("No judge", "Neither checkpoints nor best-of-n", "No failure-mode probes", "no card of this"):
            assert words in text
        assert "were not analysed" in text
    with pytest.raises(UserError, match="make score"):
        summarise(tmp_path, EvalConfig(output_dir=str(tmp_path), policies=["sft", "grpo"]))


def test_what_was_made_with_other_models_is_not_reported(tmp_path):
    config = made_up_run(tmp_path, 3, 30, 0.5)
    write_json(tmp_path / "scores/manifest.json", {"reference": {"path": "other"}, "reward_model": {"sha256": "other"}})
    with pytest.raises(UserError, match="the scores' reference is other"):
        summarise(tmp_path, config)
    models = {"reference": {"path": str(tmp_path / "sft")}, "reward_model": {"sha256": "other"}}
    write_json(tmp_path / "scores/manifest.json", models)
    assert summarise(tmp_path, config)["reward_model"] is None


def test_the_sign_test_decides_who_is_better():
    """65 prompts won narrowly and 35 lost clearly: the mean leans the other way than the wins."""
    rows = {name: [{"proxy": 0.0, "completion": "x"}] * 100 for name in ("sft", "ppo")}
    verdicts = [
        {"a": "ppo", "b": "sft", "prompt": i, "orders": ["a", "tie"] if i < 65 else ["b", "b"]}
        | {"score": 0.75 if i < 65 else 0.0}
        for i in range(100)
    ]
    unbeaten, sentences = claims(judged(verdicts, rows, seed=0))
    assert unbeaten == ["ppo"]
    assert sentences[0].startswith("The judge prefers PPO's replies to SFT's (PPO won 65 prompts and lost 35;")


def test_a_judge_that_always_says_the_first():
    rows = {name: [{"proxy": 0.0, "completion": "x"}] * 50 for name in ("sft", "ppo")}
    verdicts = [{"a": "ppo", "b": "sft", "prompt": i, "orders": ["a", "b"], "score": 0.5} for i in range(50)]
    pair = judged(verdicts, rows, seed=0)[0]
    assert (pair["mean"], pair["disagreement"], pair["better"]) == (0.5, 1.0, None)
    assert position_bias(verdicts, seed=0)["mean"] == 1.0


def curve(gold, proxy=(0.0, 1.0, 2.0), prompts=100, seed=0):
    """Over-optimisation of a policy with one checkpoint, given mean proxy and gold at start, checkpoint and end."""
    rng = np.random.default_rng(seed)
    start, middle, end = (
        [
            row(rng, i, float(rng.random() < g)) | {"proxy": p + rng.normal(0, 0.1), "log_ratio": p}
            for i in range(prompts)
        ]
        for g, p in zip(gold, proxy, strict=True)
    )
    return optimisation({"sft": start, "ppo": end}, {"ppo": {"5": middle}}, [], {}, seed)


def test_over_optimisation_is_flagged_where_a_rise_of_the_proxy_costs_gold():
    result = curve(gold=(0.5, 0.9, 0.3))
    assert [(c["from"], c["to"]) for c in result["overoptimised"]][-1] == ("step 5", "final")
    assert [point["label"] for point in result["curves"]["ppo"]] == ["start", "step 5", "final"]
    assert result["curves"]["ppo"][1]["sqrt_kl"] == pytest.approx(1.0)
    assert curve(gold=(0.3, 0.6, 0.9))["overoptimised"] == []
    assert curve(gold=(0.9, 0.6, 0.3), proxy=(2.0, 1.0, 0.0))["overoptimised"] == []


def test_over_optimisation_is_rarely_flagged_where_gold_is_flat(monkeypatch):
    """The proxy rises, gold does not change: at most 5% of 200 studies, plus chance, may flag it (17: below 2%)."""
    monkeypatch.setattr(stats, "RESAMPLES", 199)
    monkeypatch.setattr("gc.collect", lambda: 0)
    assert sum(bool(curve((0.5, 0.5, 0.5), seed=seed)["overoptimised"]) for seed in range(200)) <= 17


def test_without_gold_the_judge_is_the_truth():
    rng = np.random.default_rng(0)
    policies = {name: [row(rng, i, 0.0) | {"gold": None} for i in range(60)] for name in ("sft", "ppo")}
    for reply in policies["ppo"]:
        reply["proxy"] += 5
    assert optimisation(policies, {}, [], {}, 0)["tested"] is False
    verdicts = {("ppo", "sft"): {i: 0.0 if i % 4 else 1.0 for i in range(60)}}
    result = optimisation(policies, {}, [], verdicts, 0)
    assert [(c["curve"], c["true"]) for c in result["overoptimised"]] == [("ppo", -0.25)]
    # the curve's own replies may be to fewer prompts than were judged
    ends = {name: {"final": rows[:40]} for name, rows in policies.items()}
    result = optimisation(policies, ends, [], verdicts, 0)
    assert [(c["curve"], c["true"]) for c in result["overoptimised"]] == [("ppo", -0.25)]


@pytest.mark.parametrize("measure", ["gold", "judge"])
def test_equal_policies_are_rarely_told_apart(monkeypatch, measure):
    """Four times the same model, 400 simulated studies of 100 prompts: a false claim in at most 5% of them.

    The claims rest on one family of tests, of the judge's verdicts or, without a judge, of the gold rewards.
    """
    monkeypatch.setattr(stats, "RESAMPLES", 199)
    # what no claim needs
    monkeypatch.setattr(stats, "mean", lambda values, seed: stats.Estimate(np.mean(values), 0, 0))
    monkeypatch.setattr(stats, "length_controlled", lambda *_: None)
    monkeypatch.setattr("gc.collect", lambda: 0)  # 0.2 s in each call of multipletests
    names = ["sft", "ppo", "grpo", "dpo"]
    false = 0
    for study in range(400):
        rng = np.random.default_rng(study)
        quality = rng.normal(size=(4, 100)) + rng.normal(size=100)  # some prompts are harder for all
        scores = {
            name: [{"gold": float(v > 0), "proxy": v, "completion": ""} for v in values]
            for name, values in zip(names, quality, strict=True)
        }
        if measure == "gold":
            comparisons = compare(scores, study)
        else:
            verdicts = [
                {"a": names[k], "b": names[j], "prompt": i, "orders": ["a", "a"], "score": (1 + np.sign(margin)) / 2}
                for j, k in itertools.combinations(range(4), 2)
                for i, margin in enumerate(np.round(quality[k] - quality[j]))
            ]
            comparisons = judged(verdicts, scores, study)
        unbeaten, sentences = claims(comparisons)
        false += len(unbeaten) < 4 or any(not sentence.startswith("No difference") for sentence in sentences)
    assert false <= 20
