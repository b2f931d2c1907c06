"""Replies to judge, a server that judges them, and what the judge leaves behind."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from eval.__main__ import main
from rlhf_trl.files import read_jsonl, write_jsonl
from tests.judge_server import (
    JudgeServer,
    fair,
)

KEY = "sk-very-secret-123"
PROMPTS = 12


GOOD = {"sft": lambda i: i % 3 == 0, "ppo": lambda i: i % 2 == 0, "dpo": lambda i: True}


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
    """Run the command anew; returns exit code, last line of stdout, stderr. The key is never in what is left behind."""

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
