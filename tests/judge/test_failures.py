"""A server that is broken or hostile: no failure ever becomes a verdict."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from eval.analysis.comparisons import by_prompt, worst_case
from eval.pages.sentences import cautions
from rlhf_trl.files import read_jsonl
from tests.judge.conftest import command, manifest, truth, verdicts, verdicts_by_prompt, write_samples
from tests.judge_server import (
    Reply,
    answer,
    error,
    fair,
    refusing,
    replies,
    slowly,
)

HALF = json.dumps({"reason": "so it is", "verdict": "first"})[:-8]
FAILURES = [
    ("http 500", error(500)),
    ("http 400", error(400, "the prompt is too long")),
    ("rate limit", error(429)),
    ("unparsable", answer("I'm sorry, I can't assist with that.")),
    ("unparsable", answer("The first reply is better. Verdict: first")),
    ("unparsable", answer("A")),
    ("unparsable", answer('{"reason": "", "verdict": "First, I think"}')),
    ("unparsable", answer('{"reason": "", "verdict": ["first"]}')),
    ("unparsable", answer('["first"]')),
    ("unparsable", answer('<think>Perhaps {"reason": "", "verdict": "first"}')),
    ("unparsable", answer(None)),
    ("unparsable", answer("[" * 9999)),
    ("unparsable", answer(HALF)),
    ("cut off", answer(HALF, finish_reason="length")),
    ("refusal", answer(None, refusal="I can't assist")),
    ("refusal", answer('{"reason": "", "verdict": "first"}', finish_reason="content_filter")),
    ("bad response", Reply(200, b'{"id": "1", "choices": [{"mess')),
    ("bad response", Reply(200, b"<html>welcome</html>", {"Content-Type": "text/html"})),
    ("bad response", Reply(200, {"choices": []})),
    ("bad response", Reply(200, {"choices": "first", "usage": 3})),
    ("connection", Reply(200, b'{"id"', length=999)),
    ("timeout", None),
]


def test_failures_change_no_verdict(tmp_path, server, run_judge):
    """A third of the requests fail, each in another way: they are counted, and the rest is as if they were not."""
    prompts = 33
    folder = write_samples(tmp_path / "out", prompts)

    def number(text: str) -> int:
        return 2 * int(re.search(r"question (\d+)", text)[1]) + ("ppo's" in replies(text)[1])

    def behave(call):
        if number(call.text) % 3:
            return fair(call)
        return FAILURES[number(call.text) // 3][1] or slowly(5)(call)

    server.behaviour = behave
    code, line, _ = run_judge(folder, server.url, "--retries", 0, "--timeout", 3)
    kinds = Counter(kind for kind, _ in FAILURES)
    assert code == 0 and line.startswith("judge: 44 of 66 requests have a verdict, 22 failed (unparsable 10, ")
    assert manifest(folder)["failures"] == {"ppo:sft": kinds}
    records = read_jsonl(folder / "judge/transcript.jsonl")
    assert Counter(record["failure"] for record in records) == kinds | {None: 44}
    # of every three prompts, two lost one order
    assert verdicts_by_prompt(folder) == [row for row in truth(prompts) if row["prompt"] % 3 == 2]

    assert manifest(folder)["failed"] == {"ppo:sft": [[i, 0] for i in range(prompts) if i % 3 < 2]}
    bounds = worst_case(by_prompt(verdicts(folder)), manifest(folder)["failed"])
    # ppo won 6 of the 11 prompts with a verdict, and tied on 5
    assert bounds == {"ppo:sft": pytest.approx([(6 + 5 / 2) / 33, (6 + 5 / 2 + 22) / 33])}
    said = cautions(manifest(folder) | {"worst_case": bounds})
    assert len(said) == 1
    assert said[0].startswith("ppo:sft: 22 requests failed (") and said[0].endswith("would be 0.26 or 0.92")

    server.behaviour, before = fair, len(server.calls)
    run_judge(folder, server.url)
    assert {number(call.text) for call in server.calls[before:]} == set(range(0, 66, 3))
    assert len(server.calls) == before + 22 and manifest(folder)["failures"] == {}
    assert verdicts_by_prompt(folder) == truth(prompts)
    # the prompts were those asked for beforehand, all of them
    assert manifest(folder)["looks"] == [] and manifest(folder)["failed"] == {}


def test_a_server_that_is_gone_is_given_up(tmp_path, run_judge):
    """Before it was asked all 120 requests, in one line."""
    folder = write_samples(tmp_path / "out", 60)
    code, _, said = run_judge(folder, "http://127.0.0.1:9/v1", "--retries", 0, "--concurrency", 4)
    assert code == 2
    assert "the judge's server http://127.0.0.1:9/v1 cannot be reached" in said and "Traceback" not in said
    assert 8 <= len(read_jsonl(folder / "judge/transcript.jsonl")) <= 12
    assert not (folder / "judge/manifest.json").exists()


def test_a_failed_reply_is_one_of_its_prompts_replies():
    """Of the first prompt one reply was won and one failed; the second was tied."""
    known = [{"a": "ppo", "b": "sft", "prompt": i, "reply": 0, "score": score} for i, score in enumerate((1.0, 0.5))]
    assert worst_case(by_prompt(known), {"ppo:sft": [[0, 1]]}) == {"ppo:sft": [0.5, 0.75]}


def test_retry_after(judge, folder, server):
    server.behaviour = lambda call: fair(call) if call.earlier else error(429, Retry_After="0.3")
    start = time.perf_counter()
    judge()
    assert time.perf_counter() - start > 0.3
    assert verdicts(folder) == truth() and len(server.calls) == 48


@pytest.mark.parametrize("structured", [True, False])
def test_refused_parameters_are_left_out(structured, judge, folder, server):
    server.behaviour = refusing("temperature", "response_format", structured=structured)
    code, _, err = judge("--concurrency", 4)
    assert code == 0 and verdicts(folder) == truth()
    assert manifest(folder)["refused"] == ["response_format", "temperature"]
    assert err.count("refuses temperature") == err.count("refuses response_format") == 1
    assert len(server.calls) <= 24 + 2 * 4
    judge()
    assert manifest(folder)["refused"] == ["response_format", "temperature"]


def test_killed_run_goes_on(judge, folder, server):
    server.behaviour = slowly(0.3)
    argv = [sys.executable, "-m", "eval", "judge", *command(folder, server.url), "--concurrency", "4"]
    transcript = folder / "judge/transcript.jsonl"
    run = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    while len(server.calls) < 12:
        time.sleep(0.02)
        assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    with transcript.open("a") as file:
        file.write('{"key": "half a li')
    known = len(transcript.read_text().splitlines()) - 1
    before = len(server.calls)
    assert 4 <= known < 24 and before - known <= 4

    server.behaviour = fair
    judge("--concurrency", 4)
    assert len(server.calls) - before == 24 - known
    assert verdicts(folder) == truth() and len(read_jsonl(transcript)) == 24
    assert manifest(folder)["looks"] == []  # nobody had seen a verdict


@pytest.mark.parametrize("budget", [1, 24])
@pytest.mark.parametrize("status", [307, 400, 401, 402, 403, 404])
def test_a_wrong_key_or_model_stops_the_run(status, budget, judge, folder, server):
    server.behaviour = lambda call: error(
        status, f"I know nothing of {call.authorization}", param="model" if status == 400 else None
    )
    code, _, err = judge("--concurrency", 2, "--budget_requests", budget)
    assert code == 2 and f"Error code: {status}" in err and "[OPENAI_API_KEY]" in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1 and "Traceback" not in err
    assert len(server.calls) <= 3


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_exhausted_quota_stops_the_run(concurrency, judge, folder, server):
    """No request is tried again, and the next run goes on from the verdicts that there were."""
    exhausted = error(429, "You exceeded your current quota", code="insufficient_quota")
    server.behaviour = lambda call: fair(call) if len(server.calls) <= 8 else exhausted
    code, _, err = judge("--concurrency", concurrency)
    assert code == 2 and "the quota is exhausted" in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert len(server.calls) <= 8 + concurrency
    records = read_jsonl(folder / "judge/transcript.jsonl")
    assert all(record["verdict"] for record in records) and 8 - 2 * concurrency < len(records) <= 8

    server.behaviour, before = fair, len(server.calls)
    judge()
    assert len(server.calls) == before + 24 - len(records) and verdicts(folder) == truth()


ECHOES = [
    lambda call: error(500, call.authorization),
    lambda call: Reply(500, call.authorization.encode(), {"Content-Type": "text/plain"}),
    lambda call: error(400, call.authorization),
    lambda call: answer(call.authorization),
    lambda call: answer(json.dumps({"reason": call.authorization, "verdict": "first"})),
    lambda call: answer(None, refusal=call.authorization),
    lambda call: Reply(200, {"choices": call.authorization}),
    lambda call: Reply(200, fair(call).body | {"model": call.authorization}),
]


def test_the_key_is_written_nowhere(judge, folder, server):
    server.behaviour = lambda call: ECHOES[int(re.search(r"question (\d+)", call.text)[1])](call)
    assert judge("--retries", 0, "--judge_prompts", len(ECHOES))[0] == 0  # this looks into all files and the output
    records = read_jsonl(folder / "judge/transcript.jsonl")
    assert all("Bearer [OPENAI_API_KEY]" in json.dumps(record) for record in records) and len(records) == 16
