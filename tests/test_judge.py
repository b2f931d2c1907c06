"""The judge against a server that is fair, biased, broken or hostile: no failure ever becomes a verdict."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from eval.__main__ import main
from eval.analysis.comparisons import by_prompt, worst_case
from eval.judging.client import parse_verdict
from eval.pages.sentences import cautions
from rlhf_trl.files import read_jsonl, write_jsonl
from tests.judge_server import (
    JudgeServer,
    Reply,
    always_first,
    answer,
    at_random,
    error,
    fair,
    phrased,
    refusing,
    replies,
    slowly,
    verdict,
)

KEY = "sk-very-secret-123"
PROMPTS = 12


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_LOG", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def folder(tmp_path):
    return write_samples(tmp_path / "out", PROMPTS)


@pytest.fixture
def server():
    with JudgeServer(fair) as server:
        yield server


@pytest.fixture
def run_judge(monkeypatch, capsys):
    """Run the command; returns exit code, last line of stdout, stderr. The key is never in what is left behind."""

    def call(folder: Path, url: str | None, *options) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval", "judge", "--fresh", *command(folder, url), *map(str, options)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert KEY not in out + err + everything(folder)
        return code, out.strip().rpartition("\n")[2], err

    return call


@pytest.fixture
def judge(folder, server, run_judge):
    def call(*options, url: str | None = server.url) -> tuple[int, str, str]:
        return run_judge(folder, url, *options)

    return call


GOOD = {"sft": lambda i: i % 3 == 0, "ppo": lambda i: i % 2 == 0, "dpo": lambda i: True}


def write_samples(folder: Path, prompts: int, replies: int = 1, word: str = "question") -> Path:
    """Replies of two policies and a third as `NAME=FOLDER`. ppo's first is good on even prompts, sft's on every third,
    and a later reply is as good as the first one to a later prompt. Greedily it is the other way round."""
    for name, is_good in GOOD.items():
        places = [(i, reply) for i in range(prompts) for reply in range(replies)]
        rows = [row(name, i, reply, is_good(i + reply), word) for i, reply in places]
        write_jsonl(folder / f"samples/{name}.jsonl", rows)
        scored = [row | {"gold": float("good" in row["completion"])} for row in rows]  # as the fair judge has it
        write_jsonl(folder / f"scores/{name}.jsonl", scored)
        greedy = [row(name, i, 0, not is_good(i), word) for i in range(prompts)]
        write_jsonl(folder / f"samples/greedy/{name}.jsonl", greedy)
    config = {"output_dir": str(folder), "policies": ["sft", "ppo", "dpo=elsewhere"], "judge_pairs": ["ppo:sft"]}
    (folder / "eval.yaml").write_text(yaml.safe_dump(config))
    return folder


def row(name: str, i: int, reply: int, good: bool, word: str) -> dict:
    return {
        "reply": reply,
        "dialogue": f"\n\nHuman: {'long ' * 300}\n\nAssistant: yes?\n\nHuman: {word} {i}\n\nAssistant:",
        "prompt": "as the model saw it",
        "completion": f' a {"good" if good else "poor"} {name}\'s "reply" {i}.{reply} — ja\n',
        "finished": True,
    }


def command(folder: Path, url: str | None) -> list[str]:
    return ["--config", str(folder / "eval.yaml"), *(["--base_url", url] if url else [])]


def everything(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def verdicts(folder: Path) -> list[dict]:
    return read_jsonl(folder / "judge" / "verdicts.jsonl")


def verdicts_by_prompt(folder: Path) -> list[dict]:
    return sorted(verdicts(folder), key=lambda row: row["prompt"])


def manifest(folder: Path) -> dict:
    return json.loads((folder / "judge" / "manifest.json").read_text())


def truth(prompts: int = PROMPTS, replies: int = 1) -> list[dict]:
    """What a fair judge says of ppo and sft, from how the samples were written."""
    rows = []
    for i in range(prompts):
        for reply in range(replies):
            ppo, sft = (GOOD[name](i + reply) for name in ("ppo", "sft"))
            winner = "tie" if ppo == sft else "a" if ppo else "b"
            score = {"a": 1.0, "tie": 0.5, "b": 0.0}[winner]
            place = {"a": "ppo", "b": "sft", "prompt": i, "reply": reply}
            rows.append(place | {"orders": [winner, winner], "score": score})
    return rows


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
    judge("--judge", "gold", "--gold_rule", "demo")
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


@pytest.mark.parametrize("concurrency", [1, 32])
@pytest.mark.parametrize(
    "behaviour", [fair, lambda call: error(500), lambda call: error(429, Retry_After="60")], ids=["fair", "500", "429"]
)
def test_budget_of_requests(behaviour, concurrency, judge, folder, server):
    server.behaviour = behaviour
    budget = 1 if concurrency == 1 and behaviour is not fair else 9
    start = time.perf_counter()
    code, line, _ = judge("--budget_requests", budget, "--concurrency", concurrency)
    assert time.perf_counter() - start < 5  # without waiting as long as Retry-After says
    judged = 9 if behaviour is fair else 0
    assert len(server.calls) == budget and code == 0
    assert line.startswith(f"judge: {judged} of 24 requests have a verdict, {24 - judged} are left")
    assert manifest(folder)["pending"] == 24 - judged

    server.behaviour = fair
    judge()
    assert len(server.calls) == budget + 24 - judged and verdicts(folder) == truth()


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


@pytest.mark.parametrize(
    "options",
    [
        ("--budget_tokens", 1000),
        ("--budget_usd", 0.0021, "--usd_per_million_input", 2, "--usd_per_million_output", 1),
    ],
    ids=["tokens", "usd"],
)
def test_budget_of_tokens_and_money(options, judge, folder, server):
    code, line, _ = judge(*options, "--concurrency", 2)
    assert code == 0 and 10 <= len(server.calls) <= 11 and "run again to go on" in line
    assert manifest(folder)["pending"] == 24 - len(server.calls)


def test_budget_needs_usage(judge, server):
    server.behaviour = lambda call: Reply(200, {name: v for name, v in fair(call).body.items() if name != "usage"})
    assert judge()[0] == 0
    code, _, err = judge("--budget_tokens", 1000, "--judge_model", "other", "--concurrency", 2)
    assert code == 2 and "reports no usage" in err and len(server.calls) <= 24 + 3


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


def test_600_verdicts_in_20_seconds(tmp_path, server, monkeypatch, capsys):
    folder = write_samples(tmp_path / "large", 100)
    server.behaviour = slowly(0.3)
    pairs = ["--judge_pairs", "ppo:sft", "dpo:sft", "dpo:ppo"]
    monkeypatch.setattr(sys, "argv", ["eval", "judge", *command(folder, server.url), *pairs])
    start = time.perf_counter()
    main()
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n600 verdicts of a server that takes 300 ms: {seconds:.1f} s")
    assert len(server.calls) == 600 and len(verdicts(folder)) == 300
    assert seconds < 20


def test_dry_run_writes_nothing(judge, folder, server, monkeypatch):
    prices = ("--usd_per_million_input", 2, "--usd_per_million_output", 8)
    judge("--budget_requests", 4)
    before = everything(folder)
    monkeypatch.delenv("OPENAI_API_KEY")
    code, line, _ = judge("--dry_run", *prices)
    assert code == 0 and line.startswith("judge: 20 of 24 requests are outstanding") and "10240 out" in line
    assert "$" in line and everything(folder) == before and len(server.calls) == 4


def test_without_a_judge(judge, folder, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    code, line, _ = judge(url=None)
    assert code == 0 and line == (
        "judge: no OPENAI_API_KEY and no base_url, so no judge ran and there are no verdicts "
        "(the transcript, if any, is kept)"
    )
    assert manifest(folder) == {"judge": "none", "reason": "no OPENAI_API_KEY and no base_url"}
    assert judge()[0] == 0  # a server of one's own may need no key
    transcript = (folder / "judge/transcript.jsonl").read_text()
    judge("--judge", "none")
    assert manifest(folder) == {"judge": "none", "reason": "set to none"}
    assert not (folder / "judge/verdicts.jsonl").exists()  # the report would show them
    assert (folder / "judge/transcript.jsonl").read_text() == transcript


def test_without_a_key_what_was_judged_still_counts(judge, folder, monkeypatch, server):
    judge()
    before = verdicts(folder)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr("eval.judge.JudgeClient.ask", None)  # nothing may be asked
    assert judge()[0] == 0
    assert verdicts(folder) == before


def test_a_server_in_the_environment(judge, folder, server, monkeypatch):
    """Its address is that of `base_url`: verdicts of one server are not another's, and no key is needed."""
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    judge(url=None)
    assert verdicts(folder) == truth() and manifest(folder)["base_url"] == server.url
    with JudgeServer(always_first) as other:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{other.url}/")
        judge(url=None)
        assert all(row["orders"] == ["a", "b"] for row in verdicts(folder))
        assert manifest(folder)["base_url"] == other.url and manifest(folder)["requests"] == {"sent": 24, "cached": 0}
        judge(url=other.url)
        assert manifest(folder)["requests"] == {"sent": 0, "cached": 24}
    judge()
    assert verdicts(folder) == truth() and len(server.calls) == 24
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    judge(url=None)
    assert manifest(folder)["judge"] == "none"


@pytest.mark.parametrize("address", ["localhost:8000/v1", "http://me:hunter2@localhost/v1", "http://localhost:port"])
def test_a_bad_server_in_the_environment(address, judge, folder, server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    code, _, err = judge(url=None)
    assert code == 2 and "OPENAI_BASE_URL is no address" in err and err.count("\n") == 1 and "hunter2" not in err
    assert judge("--judge", "gold", "--gold_rule", "demo", url=None)[0] == 0  # who needs none is not bothered


def test_checkpoints_against_the_reference(judge, folder, server):
    rows = read_jsonl(folder / "samples/ppo.jsonl")[:2]
    write_jsonl(folder / "samples/checkpoints/ppo-6.jsonl", rows)
    assert judge("--judge_checkpoints", "true", "--judge_pairs", "ppo:sft")[0] == 0
    judged = [row for row in read_jsonl(folder / "judge/verdicts.jsonl") if row["a"] == "checkpoints/ppo-6"]
    assert [(row["b"], row["prompt"]) for row in judged] == [("sft", 0), ("sft", 1)]


def test_gold(judge, folder, server):
    assert judge("--judge", "gold", "--gold_rule", "demo")[0] == 0
    assert verdicts(folder) == truth() and not server.calls
    assert manifest(folder)["model"] == "demo"
    code, _, err = judge("--judge", "gold")
    assert code == 2 and "gold_rule" in err


@pytest.mark.parametrize("change", [{"gold": None}, {"completion": "another"}])
def test_the_true_rule_judges_the_replies_that_were_scored(change, judge, folder):
    rows = read_jsonl(folder / "scores/ppo.jsonl")
    write_jsonl(folder / "scores/ppo.jsonl", [*rows[:-1], rows[-1] | change])
    code, _, err = judge("--judge", "gold", "--gold_rule", "demo")
    assert code == 2 and "the scores of ppo are not the true rule's of its samples; run 'make score' again" in err
    (folder / "scores/ppo.jsonl").unlink()
    assert "scores/ppo.jsonl is missing; run 'make score' first" in judge("--judge", "gold", "--gold_rule", "demo")[2]


def test_own_template(judge, folder, server, tmp_path):
    template = tmp_path / "own.txt"
    template.write_text("{{ dialogue }}|{{ first }}|{{ second }}")
    server.behaviour = always_first
    judge("--judge_template", template)
    sample = read_jsonl(folder / "samples/ppo.jsonl")[0]
    assert any(call.text.startswith(f"{sample['dialogue']}|{sample['completion']}|") for call in server.calls)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--judge_template", "nowhere.txt"], "nowhere.txt"),
        (["--judge_template", "{{ first }"], "cannot be used"),
        (["--judge_template", "{{ first }}"], "dialogue, first and second"),
        (["--judge_pairs", "ppo:elsewhere"], "sft, ppo, dpo"),
        (["--policies", "sft"], "no pair"),
        (["--base_url", "http://"], "base_url is no address"),
        (["--retries", "-1"], "retries must be at least 0"),
        (["--timeout", "0"], "timeout must be above 0"),
        (["--budget_tokens", "-1"], "budget_tokens must be at least 0"),
        (["--usd_per_million_input", "2"], "set usd_per_million_output"),
        (["--policies", "sft", "new", "--judge_pairs", "new:sft"], "run 'make samples' first"),
    ],
)
def test_mistakes(options, words, judge, folder, tmp_path, server):
    if "{{" in options[-1]:
        (tmp_path / "own.txt").write_text(options[-1])
        options = ["--judge_template", tmp_path / "own.txt"]
    if options == ["--policies", "sft"]:
        config = yaml.safe_load((folder / "eval.yaml").read_text())
        (folder / "eval.yaml").write_text(yaml.safe_dump(config | {"judge_pairs": None}))
    code, _, err = judge(*options)
    assert code == 2 and words in err and err.count("\n") == 1
    assert not (folder / "judge").exists() and not server.calls
