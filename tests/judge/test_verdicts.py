"""What a judge says becomes a verdict, whoever judges and however it is put."""

import time
from collections import Counter
from pathlib import Path

import pytest

from eval.judging.client import parse_verdict
from eval.pages.sentences import cautions
from rlhf_trl.files import read_jsonl, write_jsonl
from tests.judge.conftest import KEY, PROMPTS, manifest, truth, verdicts, write_samples
from tests.judge_server import (
    always_first,
    at_random,
    phrased,
    verdict,
)


def test_fair(judge, folder, server):
    code, line, _ = judge()
    assert code == 0
    assert line == f"judge: 24 of 24 requests have a verdict; verdicts are in {folder}/judge/verdicts.jsonl"
    assert verdicts(folder) == truth()
    sample = read_jsonl(folder / "samples/ppo.jsonl")[3]
    assert any(sample["dialogue"] in call.text and sample["completion"] in call.text for call in server.calls)
    assert {call.authorization for call in server.calls} == {f"Bearer {KEY}"}

    record = read_jsonl(folder / "judge/transcript.jsonl")[0]
    assert record["request"] in [call.body for call in server.calls]
    assert record["usage"] == {"input": 100, "output": 10} and record["failure"] is None
    written = manifest(folder)
    assert written["models_served"] == ["served-1"] and written["refused"] == [] and written["failures"] == {}
    assert written["requests"] == {"sent": 24, "cached": 0} and written["tokens"] == {"input": 2400, "output": 240}

    judge()
    assert len(server.calls) == 24 and manifest(folder)["requests"] == {"sent": 0, "cached": 24}
    assert verdicts(folder) == truth()

    code, line, _ = judge("--judge_pairs", "ppo:sft", "dpo:sft", "sft:ppo", "--judge_prompts", 5)
    assert len(server.calls) == 24 + 10 and line.startswith("judge: 30 of 30 ")


@pytest.mark.parametrize(
    "behaviour, scores", [(always_first, {0.5: 12}), (at_random, None), (lambda call: verdict("tie"), {0.5: 12})]
)
def test_position(behaviour, scores, judge, folder, server):
    server.behaviour = behaviour
    judge()
    rows = verdicts(folder)
    assert scores is None or Counter(row["score"] for row in rows) == scores
    said = {(r["prompt"], r["order"]): r["verdict"] for r in read_jsonl(folder / "judge/transcript.jsonl")}
    for row in rows:
        assert row["orders"][0] == {"first": "a", "second": "b", "tie": "tie"}[said[row["prompt"], "ab"]]
        assert row["orders"][1] == {"first": "b", "second": "a", "tie": "tie"}[said[row["prompt"], "ba"]]
    if behaviour is always_first:
        assert all(row["orders"] == ["a", "b"] for row in rows)


def test_replies_are_judged_one_by_one(tmp_path, server, run_judge):
    folder = write_samples(tmp_path / "out", PROMPTS, replies=3)
    assert run_judge(folder, server.url)[0] == 0
    assert verdicts(folder) == truth() and len(server.calls) == 24  # the first one only, unless asked for
    run_judge(folder, server.url, "--judge_replies", 2)
    assert verdicts(folder) == truth(replies=2) and len(server.calls) == 48
    assert (manifest(folder)["prompts"], manifest(folder)["replies"]) == (PROMPTS, 2)
    run_judge(folder, server.url, "--judge_replies", 9)
    assert verdicts(folder) == truth(replies=3) and manifest(folder)["replies"] == 3


def test_greedy_replies(judge, folder):
    assert judge("--judge_greedy", "true")[0] == 0
    assert manifest(folder)["pairs"] == ["ppo:sft", "greedy/ppo:greedy/sft"]
    rows = verdicts(folder)
    assert [row for row in rows if row["a"] == "ppo"] == truth()
    scores = [row["score"] for row in rows if (row["a"], row["b"]) == ("greedy/ppo", "greedy/sft")]
    assert scores == [1 - row["score"] for row in truth()]
    (folder / "samples/greedy/sft.jsonl").unlink()
    code, _, err = judge("--judge_greedy", "true")
    assert code == 2 and "greedy/sft.jsonl is missing" in err


def test_verdicts_on_view_before_more_are_asked_for_are_said(judge, folder):
    """The number of prompts is then not fixed beforehand: going on may have depended on what the verdicts said."""
    judge("--budget_requests", 9, "--concurrency", 1)
    assert manifest(folder)["looks"] == []
    assert "15 requests were not made" in cautions(manifest(folder))[0]
    judge("--judge_prompts", 10)
    looks = [{"seen": 4, "planned": 10}]  # the ninth request was the first order of a fifth
    assert manifest(folder)["looks"] == looks
    (said,) = cautions(manifest(folder))
    assert "after 4 of 10" in said and "the number of prompts was not fixed beforehand" in said
    judge("--judge_prompts", 10)
    assert manifest(folder)["looks"] == looks  # nothing more was asked, but it stays so
    judge()
    assert manifest(folder)["looks"] == [*looks, {"seen": 10, "planned": PROMPTS}]
    write_samples(folder, PROMPTS, word="another question")
    judge()
    assert manifest(folder)["looks"] == [] and cautions(manifest(folder)) == []  # none of these had been judged


def test_a_run_in_one_go_needs_no_caution(judge, folder):
    judge()
    judge("--judge_pairs", "ppo:sft", "dpo:sft")  # no more of a pair that was on view
    assert manifest(folder)["looks"] == [] and cautions(manifest(folder)) == []


def test_the_true_rule_looks_at_no_verdicts_of_another_judge(judge, folder):
    judge("--budget_requests", 9, "--concurrency", 1)
    judge("--judge", "gold")
    assert verdicts(folder) == truth() and manifest(folder)["looks"] == []


WRONG = '{"reason": "", "verdict": "tie"}'


FORMS = {
    "plain": str,
    "reasoning first": lambda said: f"<think>Is it {WRONG}? No.</think>\n\n{said}",
    "reasoning that began in the prompt": lambda said: f"Is it {WRONG}? No.\n</think>{said}",
    "fenced with prose around": lambda said: f"My verdict:\n```json\n{said}\n```\nI hope that {{this}} helps.",
    "several objects": lambda said: f'First {WRONG}, but as {{"helpful": {{"}}": {WRONG}}}}}: {said}, {{"sure": 1}}',
    "parts": lambda said: [{"type": "thinking", "thinking": WRONG}, {"type": "text", "text": said}],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_verdict_is_the_same_however_it_is_put(form, judge, folder, server):
    server.behaviour = phrased(FORMS[form])
    judge()
    assert verdicts(folder) == truth()


@pytest.mark.parametrize(
    "answer, verdict",
    [
        ('{"verdict": "second"}', "second"),
        (
            '{"verdict": "second", "reason": "It shows </think> and {\\"verdict\\": \\"first\\"}.", "sure": true}',
            "second",
        ),
        ('{"verdict": "second"} {"verdict": "neither"} {"verdict": null}', "second"),
        ('<think>Say {"reason": "so</think>{"verdict": "second"}', "second"),
        ('<think>{"verdict": "first"}</think>I cannot tell.', None),
        ('{"verdict": "first"}, said I. <think>Or', None),
        ('{"verdict": "first", "reason": {"verdict": "tie"}}', "first"),
        ('{"reason": "a\nb", "verdict": "First "}', "first"),
        ('{"reason": null, "verdict": "tie"}', "tie"),
        ('{"answer": {"verdict": "first"}}', None),
        ('{"draft": {"verdict": "first"}, ', None),
        *((start * 30_000, None) for start in ("{{{", '{"', '{"a":[', '{"a":{"b":')),
    ],
)
def test_the_last_object_that_fits_counts(answer, verdict):
    start = time.perf_counter()
    assert parse_verdict(answer) == verdict
    assert time.perf_counter() - start < 5


def make_equal(folder: Path, prompts: range) -> None:
    """Give sft the replies of ppo to these, but for white space."""
    rows = {name: read_jsonl(folder / f"samples/{name}.jsonl") for name in ("sft", "ppo")}
    for i in prompts:
        rows["sft"][i]["completion"] = rows["ppo"][i]["completion"].strip()
    write_jsonl(folder / "samples/sft.jsonl", rows["sft"])


def test_equal_replies_are_a_tie_that_nobody_is_asked_for(judge, folder, server, monkeypatch):
    make_equal(folder, range(2, 6))
    server.behaviour = always_first
    assert judge("--dry_run")[1].startswith("judge: 16 of 24 ")
    _, line, _ = judge()
    assert line.startswith("judge: 24 of 24 ") and len(server.calls) == 16
    ties = {row["prompt"] for row in verdicts(folder) if row["orders"] == ["tie", "tie"]}
    assert len(verdicts(folder)) == PROMPTS and ties == {2, 3, 4, 5}
    written = manifest(folder)
    assert written["equal_replies"] == 4 and written["requests"] == {"sent": 16, "cached": 0}
    assert written["models_served"] == ["served-1"] and written["refused"] == []
    judge()
    assert manifest(folder)["requests"] == {"sent": 0, "cached": 16} and manifest(folder)["looks"] == []

    monkeypatch.delenv("OPENAI_API_KEY")
    make_equal(folder, range(PROMPTS))
    code, line, _ = judge("--judge_model", "other", url=None)
    assert code == 0 and line.startswith("judge: 24 of 24 ") and len(server.calls) == 16


@pytest.mark.parametrize("concurrency", [1, 32])
def test_equal_replies_beyond_the_budget_wait(concurrency, judge, folder):
    """They alone would count, of all that is beyond."""
    make_equal(folder, range(6, PROMPTS))
    judge("--budget_requests", 4, "--concurrency", concurrency)
    assert manifest(folder)["pending"] == 20 and [row["prompt"] for row in verdicts(folder)] == [0, 1]
    judge()
    assert manifest(folder)["pending"] == 0 and len(verdicts(folder)) == PROMPTS


def test_checkpoints_against_the_reference(judge, folder, server):
    rows = read_jsonl(folder / "samples/ppo.jsonl")[:2]
    write_jsonl(folder / "samples/checkpoints/ppo-6.jsonl", rows)
    assert judge("--judge_checkpoints", "true", "--judge_pairs", "ppo:sft")[0] == 0
    judged = [row for row in read_jsonl(folder / "judge/verdicts.jsonl") if row["a"] == "checkpoints/ppo-6"]
    assert [(row["b"], row["prompt"]) for row in judged] == [("sft", 0), ("sft", 1)]


def test_gold(judge, folder, server):
    assert judge("--judge", "gold")[0] == 0
    assert verdicts(folder) == truth() and not server.calls
    assert manifest(folder)["model"] == "the true rule"


def test_the_true_rule_judges_the_replies_that_were_scored(judge, folder):
    rows = read_jsonl(folder / "scores/ppo.jsonl")
    write_jsonl(folder / "scores/ppo.jsonl", [*rows[:-1], rows[-1] | {"gold": None}])
    code, _, err = judge("--judge", "gold")
    assert code == 2 and "judge gold needs a gold_rule" in err
    (folder / "scores/ppo.jsonl").unlink()
    assert "scores/ppo.jsonl is missing; run 'make score' first" in judge("--judge", "gold")[2]


def test_own_template(judge, folder, server, tmp_path):
    template = tmp_path / "own.txt"
    template.write_text("{{ dialogue }}|{{ first }}|{{ second }}")
    server.behaviour = always_first
    judge("--judge_template", template)
    sample = read_jsonl(folder / "samples/ppo.jsonl")[0]
    assert any(call.text.startswith(f"{sample['dialogue']}|{sample['completion']}|") for call in server.calls)
