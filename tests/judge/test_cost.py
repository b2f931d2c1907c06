"""What a judge may cost, who is asked, and what is said before anybody is."""

import sys
import time

import pytest
import yaml

from eval.__main__ import main
from tests.judge.conftest import command, everything, manifest, truth, verdicts, write_samples
from tests.judge_server import (
    JudgeServer,
    Reply,
    always_first,
    error,
    fair,
    slowly,
)


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
    said = {"judge": "none", "reason": "no OPENAI_API_KEY and no base_url", "sha256": None}
    assert manifest(folder).items() >= said.items()
    assert judge()[0] == 0  # a server of one's own may need no key
    transcript = (folder / "judge/transcript.jsonl").read_text()
    judge("--judge", "none")
    assert manifest(folder).items() >= {"judge": "none", "reason": "set to none", "sha256": "none"}.items()
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
    assert judge("--judge", "gold", url=None)[0] == 0  # who needs none is not bothered


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
