"""The report says what the files of the run say, of checkpoints and never of methods."""

import itertools
import re

import numpy as np
import pytest
import yaml

from eval.analysis import intervals
from eval.analysis.comparisons import compare, judged, position_bias, signs
from eval.analysis.overoptimisation import optimisation
from eval.analysis.summary import summarise
from eval.config import EvalConfig
from eval.pages import sentences
from eval.report import write_report
from rlhf_trl import kl
from rlhf_trl.errors import UserError
from rlhf_trl.files import file_hash, write_json, write_jsonl

NAMES = ["sft", "ppo", "dpo"]
MARGIN = 0.05
COMMON = {"learning_rate": 0.1, "lr_scheduler_type": "linear", "use_peft": False, "processes": 1, "max_steps": -1}
COMMON |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "seed": 0}
SETTINGS = {
    "sft": COMMON | {"num_train_epochs": 1},
    "ppo": COMMON
    | {"total_episodes": 64, "num_ppo_epochs": 2, "num_mini_batches": 1, "temperature": 1.0}
    | {"kl_coef": 0.1, "kl_estimator": "k1", "gamma": 1.0},
    "dpo": COMMON | {"num_train_epochs": 1, "beta": 0.2} | kl.NEEDED["beta"],
}


def made_up_run(
    root, seed: int, prompts: int, ppo_wins: float, stages=("judge", "optimisation", "probes", "cards", "colder")
):
    """Files of a run with gold rewards: ppo wins against sft on that share of prompts, dpo equals sft in law."""
    rng = np.random.default_rng(seed)
    gold = {name: rng.random(prompts) < 0.3 for name in NAMES}
    gold["ppo"] |= rng.random(prompts) < ppo_wins
    for name in ("base", *NAMES):
        values = gold.get(name, np.zeros(prompts))
        write_jsonl(root / f"scores/{name}.jsonl", [row(rng, i, float(value)) for i, value in enumerate(values)])
        greedy = [row(rng, i, float(value)) | {"kl": None} for i, value in enumerate(values)]
        write_jsonl(root / f"scores/greedy/{name}.jsonl", greedy)
    data = {"dataset": f"data{seed}", "prompts": prompts, "sha256": f"{seed}" * 64}
    versions = {"trl": f"1.{seed}"}
    machine = {"cpu": f"cpu{seed}", "threads": 10 + seed, "gpus": []}
    settings = {"temperature": 1.0 + seed, "replies": 20 + seed}
    write_json(
        root / "samples/manifest.json",
        {"seed": seed, "data": data, "versions": versions, "machine": machine, "settings": settings},
    )
    reward_model = {"sha256": "reward", "mean": 0.5, "std": 0.3 * seed}
    models = {"reference": {"path": str(root / "sft")}, "reward_model": reward_model}
    write_json(root / "scores/manifest.json", models | {"kl": dict.fromkeys(("base", *NAMES), "exact")})
    for i, name in enumerate(["reward", *NAMES]):
        parents = {"model": {"path": "base", "sha256": None if name == "sft" else "sft"}}
        if name in ("ppo", "dpo"):
            parents["reward_model"] = {"path": "reward", "sha256": "reward"}
        train = {"seconds": 100.5 * seed + i, "peak_memory_mb": 500 * seed + i, "tokens": 77 * seed + i}
        manifest = {
            "seed": 70 + seed,
            "created": f"202{seed}",
            "data": {"rows": 1000 + seed, "dataset": "d", "sha256": f"{seed}{i % 3}" * 32},
            "sha256": name,
            "made_of": parents,
            "train": train | {"optimizer_steps": 11 * seed + i, "learning_rate_sum": seed / 7 + i},
        }
        write_json(root / name / "manifest.json", manifest)
        if name in SETTINGS:
            own = {"learning_rate": seed / 1000, "per_device_train_batch_size": 8 * seed, "kl_coef": 0.013 * seed}
            own |= {
                "temperature": 1.0 + seed,
                "total_episodes": 640 * seed,
                "num_ppo_epochs": 4 + seed,
                "num_train_epochs": 6 + seed,
            }
            own = SETTINGS[name] | {key: own[key] for key in own.keys() & SETTINGS[name].keys()}
            (root / name / "config.yaml").write_text(yaml.safe_dump(own))
    if "judge" in stages:
        pairs = [(a, b) for b, a in itertools.combinations(NAMES, 2)]
        verdicts = [
            {
                "a": a,
                "b": b,
                "prompt": i,
                "reply": 0,
                "orders": orders,
                "score": {"a": 1, "b": 0, "tie": 0.5}[orders[0]],
            }
            for a, b in pairs
            for i in range(prompts)
            for orders in [["a" if gold[a][i] > gold[b][i] else "b" if gold[a][i] < gold[b][i] else "tie"] * 2]
        ]
        write_jsonl(root / "judge/verdicts.jsonl", verdicts)
        failed = {"ppo:sft": [[prompts + i, 0] for i in range(seed)]}
        judge = {"judge": "gold", "failures": {"ppo:sft": {"unparsable": 5 * seed}}, "failed": failed}
        looks = [{"seen": 12 * seed, "planned": 14 * seed}]
        write_json(root / "judge/manifest.json", judge | {"pending": 11 * seed, "looks": looks})
    if "optimisation" in stages:
        best = [row(rng, i // 4, float(rng.random() < 0.5)) | {"reply": i % 4, "kl": None} for i in range(12 * seed)]
        write_jsonl(root / "scores/best_of.jsonl", best)
        for step in (seed, 2 * seed):
            write_jsonl(root / f"scores/checkpoints/ppo-{step}.jsonl", [row(rng, i, i % 2) for i in range(3 * seed)])
    if "probes" in stages:
        for name in ("base", *NAMES):
            probes = [{"group": "g", "passed": bool(rng.random() < 0.5)} for _ in range(5 + seed)]
            write_jsonl(root / f"scores/probes/{name}.jsonl", probes)
    if "colder" in stages:
        colder = [row(rng, i, float(rng.random() < 0.5)) for i in range(prompts)]
        write_jsonl(root / f"scores/colder/sft-0.{seed}.jsonl", colder)
    if "cards" in stages:
        card = {"accuracy": 0.6 + seed / 100, "ci": [0.5 + seed / 100, 0.7 + seed / 100], "n": 90 + seed}
        card |= {"log_loss": 0.6 + seed / 50, "ece": seed / 70, "manifest": {"reward_model": {"sha256": "reward"}}}
        card |= {"ece_calibrated": {"mean": seed / 75, "upper": seed / 60}}
        card["length"] = {"pick_longer": {"accuracy": seed / 9}, "pick_shorter": {"accuracy": seed / 8}}
        write_json(root / "reward-model/card.json", card)
        write_json(root / "data/data.json", {"rows": 5})
    config = {"output_dir": str(root), "policies": NAMES, "reward_model": str(root / "reward"), "seed": seed}
    return EvalConfig(**config, smallest_difference=0.017 * seed)


def row(rng, i: int, gold: float) -> dict:
    words = " ".join(rng.choice(["a", "b", "c", "d", "e"], int(rng.integers(3, 12))))
    return {
        "index": i,
        "reply": 0,
        "subset": "odd" if i % 2 else "even",
        "dialogue": f"\n\nHuman: {i}\n\nAssistant:",
        "completion": words,
        "finished": bool(rng.random() < 0.8),
        "proxy": 2 * gold + rng.normal(),
        "gold": gold,
        "cue": bool(rng.random() < 0.4),
        "refused": bool(rng.random() < 0.3),
        "kl": rng.gamma(3, 0.3),
        "completion_tokens": len(words.split()),
    }


def test_no_number_is_typed_in(tmp_path, monkeypatch):
    """Two runs that share no input share no number, but for those that name a method or a level."""
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    texts = []
    for seed, prompts, wins in ((3, 60, 0.5), (4, 83, 0.9)):
        root = tmp_path / f"run{'ab'[seed - 3]}"
        report = write_report(made_up_run(root, seed, prompts, wins))
        texts.append((report / "ANALYSIS.md").read_text())
    fixed = ("distinct-2", "3-grams", "n - 1", "95%", "5%", "80%", "SHA-256", "3 pairs", "best of 4", "p < 0.001")
    fixed += ("temperatures 1 and 0", "temperature 1", "temperature 0", "sampled at 1", "one half")
    lines = []
    for text in texts:
        for word in fixed:
            text = text.replace(word, "")
        claims_differ = [line for line in text.splitlines() if not line.startswith(("- ", "> "))]
        lines.append([(re.findall(r"-?\d[\d.]*\d|\d", line), line) for line in claims_differ])
    assert len(lines[0]) == len(lines[1])
    # sft's distance from itself is 0 in every run, and so are the marks of best-of-n and the bound of its KL
    known = {"0.00", "-0.00", "0", "1", "2", "4", "0.64", "0.44", "0.80"}
    same = [(a, text) for (a, text), (b, _) in zip(*lines, strict=True) if a and a == b]
    typed = [(numbers, text) for numbers, text in same if not set(numbers) <= known]
    assert typed == [], typed
    assert sum(len(numbers) for numbers, _ in lines[0]) > 250


def test_numbers_and_claims_follow_the_files(tmp_path):
    config = made_up_run(tmp_path / "run", 3, 100, ppo_wins=0.6)
    summary = summarise(tmp_path / "run", config)
    ppo = next(c for c in summary["comparisons"] if (c["a"], c["b"]) == ("ppo", "sft"))
    assert ppo["wins"] + ppo["ties"] + ppo["losses"] == ppo["n"] == 100
    assert ppo["mean"] == pytest.approx((ppo["wins"] + ppo["ties"] / 2) / 100)
    gold = next(c for c in summary["measures"]["gold reward"] if (c["a"], c["b"]) == ("ppo", "sft"))
    assert 2 * (ppo["mean"] - 0.5) == pytest.approx(gold["mean"])
    assert summary["total_seconds"]["ppo"] == (100.5 * 3 + 2) + (100.5 * 3 + 1) + 100.5 * 3  # its own, sft's, reward's
    said = sentences.claims(summary["comparisons"], summary["smallest_difference"])
    decided = ppo["wins"] + ppo["losses"]
    value = f"win rate {ppo['mean']:.2f}, {ppo['ci'][0]:.2f} to {ppo['ci'][1]:.2f}; {ppo['wins']} of {decided} decided"
    assert said[0].startswith(f"The judge prefers the replies of checkpoint ppo to those of sft ({value}")
    assert said[1].startswith("No difference in win rate is shown between checkpoints dpo and sft")
    assert said[2].startswith("The judge prefers the replies of checkpoint ppo to those of dpo (win rate")

    text = (write_report(config) / "ANALYSIS.md").read_text()
    assert "**By the judge, checkpoint ppo gives better replies than every other checkpoint compared.**" in text
    for sentence in said:
        assert sentence in text
    made_up_run(tmp_path / "run", 3, 100, ppo_wins=0.0)
    text = (write_report(config) / "ANALYSIS.md").read_text()
    assert "**By the judge, no checkpoint is shown to be better than another.**" in text


def test_every_claim_is_about_checkpoints(tmp_path):
    """Whoever wins, no sentence has a method as its subject, and the first ones say that there is no verdict on it."""
    for wins in (0.0, 0.6):
        config = made_up_run(tmp_path / "run", 3, 100, ppo_wins=wins)
        report = write_report(config)
        text, page = ((report / name).read_text() for name in ("ANALYSIS.md", "report.html"))
        claims = [
            line for line in text.splitlines() if re.search("better|prefers|higher|equivalent|No difference", line)
        ]
        assert len(claims) >= 5
        for line in claims:
            assert "checkpoint" in line, line
        assert not re.search(r"\b(PPO|GRPO|DPO)('s| is| are| beats| has| gives)", text)
        for said in (text, page):
            assert re.search(rf"(?s)better.*{re.escape(sentences.NO_VERDICT)}", said[: said.index("What is matched")])


def test_two_runs_that_differ_in_their_seed_are_said_to_be_one_method(tmp_path):
    config = made_up_run(tmp_path, 3, 60, 0.5)
    settings = yaml.safe_load((tmp_path / "ppo/config.yaml").read_text())
    manifest = yaml.safe_load((tmp_path / "ppo/manifest.json").read_text())

    def said(own: dict, run: dict) -> bool:
        (tmp_path / "dpo/config.yaml").write_text(yaml.safe_dump(settings | own))
        write_json(tmp_path / "dpo/manifest.json", manifest | {"sha256": "dpo"} | run)
        text = (write_report(config) / "ANALYSIS.md").read_text()
        return "Checkpoints ppo and dpo come from the same settings with another seed: what sets them apart" in text

    assert said({"seed": 1, "output_dir": "elsewhere"}, {"seed": 1})
    assert not said({"seed": 1, "learning_rate": 7}, {"seed": 1})
    assert not said({}, {})
    assert not said({"seed": 1}, {"seed": 1, "made_of": {"model": {"sha256": "other", "path": "p"}}})


def test_matched_is_said_only_of_what_was_checked(tmp_path):
    config = made_up_run(tmp_path, 3, 60, 0.5)
    summary = summarise(tmp_path, config)
    assert summary["matched"]
    assert [c["what"] for c in summary["conditions"]] == [
        "ppo and dpo started from sft",
        "the reward model that scores the replies is the one behind ppo and dpo",
        "dpo learned from the pairs of the reward model",
        "all have one seed",
    ]
    table = summary["differences"]
    assert table["strength of the KL (b)"] == {"ppo": "0.039", "dpo": "0.222"}  # beta 0.2 over a scale of 0.9
    assert table["optimizer steps"] == {"ppo": 35, "dpo": 36}
    assert table["examples"] == {"ppo": "1920 replies sampled", "dpo": "9027 pairs read"}
    for change in (
        {"seed": 1},
        {"data": {"sha256": "x", "rows": 1, "dataset": "d"}},
        {"made_of": {"model": {"sha256": "other", "path": "p"}}},
        {"made_of": {"model": {"sha256": "sft", "path": "p"}, "reward_model": {"sha256": "other", "path": "p"}}},
    ):
        made_up_run(tmp_path, 3, 60, 0.5)
        manifest = tmp_path / "dpo/manifest.json"
        write_json(manifest, yaml.safe_load(manifest.read_text()) | change)
        summary = summarise(tmp_path, config)
        assert not summary["matched"] and sum(not c["holds"] for c in summary["conditions"]) == 1, change
    manifest.unlink()
    text = (write_report(config) / "ANALYSIS.md").read_text()
    assert "Nothing was checked" in text and "of one run" not in text.splitlines()[0]


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
    models = {"kl": {}, "reference": {"path": "other"}, "reward_model": {"sha256": "other"}}
    write_json(tmp_path / "scores/manifest.json", models)
    with pytest.raises(UserError, match="the scores' reference is other"):
        summarise(tmp_path, config)
    write_json(tmp_path / "scores/manifest.json", models | {"reference": {"path": str(tmp_path / "sft")}})
    assert summarise(tmp_path, config)["reward_model"] is None


def test_verdicts_on_other_replies_are_refused(tmp_path):
    config = made_up_run(tmp_path, 3, 30, 0.5)
    write_jsonl(tmp_path / "samples/ppo.jsonl", [{"completion": "one"}])
    judge = yaml.safe_load((tmp_path / "judge/manifest.json").read_text())
    judge["samples"] = {"ppo": file_hash(tmp_path / "samples/ppo.jsonl")}
    write_json(tmp_path / "judge/manifest.json", judge)
    assert summarise(tmp_path, config)["judge"]
    write_jsonl(tmp_path / "samples/ppo.jsonl", [{"completion": "another"}])
    with pytest.raises(UserError, match="the verdicts are on other replies of ppo"):
        summarise(tmp_path, config)


def verdict(prompt: int, score: float, a: str = "ppo", b: str = "sft") -> dict:
    orders = {1: ["a", "a"], 0.75: ["a", "tie"], 0.5: ["tie", "tie"], 0: ["b", "b"]}[score]
    return {"a": a, "b": b, "prompt": prompt, "reply": 0, "orders": orders, "score": score}


def replies(*names: str, prompts: int = 100) -> dict[str, list[dict]]:
    reply = {"reply": 0, "proxy": 0.0, "completion": "x"}
    return {name: [reply] * prompts for name in names}


def test_what_is_tested_is_what_is_printed():
    """65 prompts won narrowly and 35 lost clearly: more are won than lost, and yet the win rate is below one half."""
    verdicts = [verdict(i, 0.75 if i < 65 else 0) for i in range(100)]
    (pair,) = judged(verdicts, replies("sft", "ppo"), MARGIN, seed=0)
    assert pair["mean"] == pytest.approx(0.4875) and (pair["wins"], pair["losses"]) == (65, 35)
    assert pair["better"] is None and pair["ci"][0] < 0.5 < pair["ci"][1]
    assert "65 of 100 decided prompts won" in sentences.claims([pair], MARGIN)[0]
    verdicts = [verdict(i, 0.75 if i < 55 else 0) for i in range(100)]
    (pair,) = judged(verdicts, replies("sft", "ppo"), MARGIN, seed=0)
    assert pair["better"] == "sft"
    assert sentences.claims([pair], MARGIN)[0].startswith("The judge prefers the replies of checkpoint sft to those of")


def test_a_judge_that_always_says_the_first():
    verdicts = [verdict(i, 0.5) | {"orders": ["a", "b"]} for i in range(50)]
    pair = judged(verdicts, replies("sft", "ppo"), MARGIN, seed=0)[0]
    assert (pair["mean"], pair["disagreement"], pair["better"]) == (0.5, 1.0, None)
    assert position_bias(verdicts)["mean"] == 1.0


def test_a_prompt_counts_once_however_many_replies_were_judged():
    verdicts = [verdict(i, 1) | {"reply": k} for i in range(30) for k in range(4)] + [
        verdict(i, 0) for i in range(30, 60)
    ]
    scores = {
        name: [{"reply": k, "proxy": 0.0, "completion": "x"} for _ in range(60) for k in range(4)]
        for name in ("sft", "ppo")
    }
    (pair,) = judged(verdicts, scores, MARGIN, seed=0)
    assert (pair["mean"], pair["n"]) == (0.5, 60)


def rounds(*beaten: tuple[str, str]) -> list[dict]:
    """Comparisons in which the first of each pair beats the second on all of 50 prompts."""
    names = dict.fromkeys(name for pair in beaten for name in pair)
    verdicts = [verdict(i, 1, *pair) for pair in beaten for i in range(50)]
    return judged(verdicts, replies(*names), MARGIN, seed=0)


def test_headlines():
    beats = sentences.headline
    assert beats(rounds(("a", "b"), ("a", "c"), ("b", "c"))).startswith(
        "By the judge, checkpoint a gives better replies"
    )
    cycle = beats(rounds(("a", "b"), ("b", "c"), ("c", "a")))
    assert (
        "every checkpoint is beaten by another, so they have no order: a is better than b, b is better than c and"
        in cycle
    )
    ties = [verdict(i, 0.5, *pair) for pair in (("b", "a"), ("c", "a"), ("c", "b")) for i in range(300)]
    pairs = judged(ties, replies("a", "b", "c", prompts=300), MARGIN, seed=0)
    assert beats(pairs) == "By the judge, all checkpoints compared are equivalent."
    assert all("all prompts tied; p = 1" in said and "equivalent" in said for said in sentences.claims(pairs, MARGIN))
    one = judged([verdict(0, 1)], replies("sft", "ppo"), MARGIN, seed=0)
    assert beats(one) == "By the judge, no checkpoint is shown to be better than another."
    assert "with 80% power" not in sentences.claims(one, MARGIN)[0]
    some = sentences.headline(pairs[:2])
    assert some == "By the judge, no checkpoint is shown to be better than another in the pairs compared."
    half = rounds(("a", "b"), ("c", "b")) + judged(
        [verdict(i, 0.5, "c", "a") for i in range(9)], replies("a", "c"), MARGIN, 0
    )
    assert beats(half).endswith(
        "no checkpoint is shown to be the best: a and c are not shown to be worse than another."
    )
    assert half[-1]["equivalent"] is False
    half[-1]["equivalent"] = True
    assert beats(half).endswith("a and c are not shown to be worse than another; they are equivalent to each other.")


def test_a_small_difference_can_be_shown_and_not_matter():
    verdicts = [verdict(i, 1 if i < 40 else 0.5) for i in range(2000)]
    (pair,) = judged(verdicts, replies("sft", "ppo", prompts=2000), MARGIN, seed=0)
    said = sentences.claims([pair], MARGIN)[0]
    assert pair["better"] == "ppo" and said.startswith("The judge prefers") and "they are equivalent" in said


def test_a_p_value_at_the_resamples_floor_is_a_bound():
    pair = rounds(("a", "b"))[0]
    assert pair["p"] == 1 / (intervals.RESAMPLES + 1)
    assert "p < 1e-4" in sentences.claims([pair], MARGIN)[0]
    assert sentences.p_value(0.0123) == "p = 0.012"


def test_a_sign_that_changes_with_the_temperature_is_said():
    warm = judged([verdict(i, 1 if i < 60 else 0) for i in range(80)], replies("sft", "ppo"), MARGIN, seed=0)
    greedy = judged([verdict(i, 0 if i < 60 else 1) for i in range(80)], replies("sft", "ppo"), MARGIN, seed=0)
    assert signs(warm, warm) == []
    (said,) = sentences.changes(signs(warm, greedy))
    assert said.startswith(
        "The order of checkpoints ppo and sft changes with the temperature: sampled at 1, ppo is ahead"
    )
    assert "greedily, sft is (win rate 0.75" in said and "not shown" not in said
    chance = judged([verdict(i, 0 if i < 41 else 1) for i in range(80)], replies("sft", "ppo"), MARGIN, seed=0)
    (said,) = sentences.changes(signs(warm, chance))
    assert said.count("not shown") == 1
    assert signs(chance, judged([verdict(i, i % 80 < 41) for i in range(80)], replies("sft", "ppo"), MARGIN, 0)) == []


def test_cautions_about_a_judge():
    judge = {"looks": [{"seen": 10, "planned": 50}], "pending": 4, "failures": {"a:b": {"rate limit": 3}}}
    looks, pending, failed = sentences.cautions(judge | {"worst_case": {"a:b": [0.41, 0.62]}})
    assert "after 10 of 50 comparisons" in looks and "not fixed beforehand" in looks
    assert "4 requests were not made" in pending
    assert "3 requests failed (rate limit 3)" in failed and "would be 0.41 or 0.62" in failed
    assert sentences.cautions({"looks": [], "pending": 0, "failures": {}, "worst_case": {}}) == []


def test_an_evaluation_by_subset_shows_who_refuses_everything(tmp_path):
    config = made_up_run(tmp_path, 3, 60, 0.5)
    rows = [row(np.random.default_rng(i), i, float(i % 2)) | {"refused": True} for i in range(60)]
    write_jsonl(tmp_path / "scores/ppo.jsonl", rows)
    subsets = summarise(tmp_path, config)["subsets"]
    assert {name: part["prompts"] for name, part in subsets.items()} == {"even": 30, "odd": 30}
    ppo = {name: part["policies"]["ppo"] for name, part in subsets.items()}
    assert [ppo[name]["gold_reward"]["mean"] for name in ("even", "odd")] == [0, 1]
    assert all(part["refused"]["mean"] == 1 for part in ppo.values())


def curve(gold, proxy=(0.0, 1.0, 2.0), prompts=100, seed=0):
    """Over-optimisation of a policy with one checkpoint, given mean proxy and gold at start, checkpoint and end."""
    rng = np.random.default_rng(seed)
    start, middle, end = (
        [row(rng, i, float(rng.random() < g)) | {"proxy": p + rng.normal(0, 0.1), "kl": p} for i in range(prompts)]
        for g, p in zip(gold, proxy, strict=True)
    )
    return optimisation({"sft": start, "ppo": end}, {"ppo": {"5": middle}}, [], {}, seed)


def test_over_optimisation_is_flagged_where_a_rise_of_the_proxy_costs_gold():
    result = curve(gold=(0.5, 0.9, 0.3))
    assert ("step 5", "final", True) in [(c["from"], c["to"], c["rose"]) for c in result["falls"]]
    assert [point["label"] for point in result["curves"]["ppo"]] == ["start", "step 5", "final"]
    assert result["curves"]["ppo"][1]["sqrt_kl"]["mean"] == pytest.approx(1.0)
    assert curve(gold=(0.3, 0.6, 0.9))["falls"] == []
    (said,) = sentences.falls(result["falls"], "gold reward")
    assert said.startswith("ppo, from step 5 to final: over-optimised (proxy reward +")


def test_a_fall_of_gold_together_with_the_proxy_is_said_too():
    falls = curve(gold=(0.5, 0.9, 0.3), proxy=(0.0, 2.0, 1.0))["falls"]
    assert [(c["from"], c["rose"]) for c in falls if c["from"] == "step 5"] == [("step 5", False)]
    assert "worse without a rise of the proxy being shown" in sentences.falls(falls, "gold reward")[0]


def test_a_curve_of_60_of_60_is_not_certain():
    point = curve(gold=(0.5, 1.0, 1.0), prompts=60)["curves"]["ppo"][-1]["gold"]
    assert point["mean"] == 1 and point["ci"][0] == pytest.approx(0.94, abs=0.01)


def test_falls_are_rarely_found_where_gold_is_flat(monkeypatch):
    """The proxy rises, gold does not change: at most 5% of 200 studies, plus chance, may show a fall (17: below 2%)."""
    monkeypatch.setattr(intervals, "RESAMPLES", 199)
    assert sum(bool(curve((0.5, 0.5, 0.5), seed=seed)["falls"]) for seed in range(200)) <= 17


def test_without_gold_the_judge_is_the_truth():
    rng = np.random.default_rng(0)
    policies = {name: [row(rng, i, 0.0) | {"gold": None} for i in range(60)] for name in ("sft", "ppo")}
    for reply in policies["ppo"]:
        reply["proxy"] += 5
    assert optimisation(policies, {}, [], {}, 0)["tested"] is False
    verdicts = {("ppo", "sft"): {i: 0.0 if i % 4 else 1.0 for i in range(50)}}
    (fall,) = optimisation(policies, {}, [], verdicts, 0)["falls"]
    assert (fall["curve"], fall["true"], fall["rose"]) == ("ppo", pytest.approx(-0.24), True)


def test_compare_takes_the_mean_over_replies():
    """Two replies a prompt: what is compared is their mean, and the number of prompts decides the interval."""
    rng = np.random.default_rng(0)
    values = {name: (rng.random((40, 2)) < share).astype(float) for name, share in (("sft", 0.4), ("ppo", 0.6))}
    rows = {
        name: [{"reply": k, "gold": value} for prompt in table for k, value in enumerate(prompt)]
        for name, table in values.items()
    }
    (pair,) = compare(rows, "gold", MARGIN, seed=0)
    assert pair["n"] == 40
    assert pair["mean"] == pytest.approx(values["ppo"].mean() - values["sft"].mean())
