"""Faults that users of 9609913 would have met, each at the command line, so that this file runs on that commit too."""

import gzip
import json

import pytest
import yaml
from transformers import AutoTokenizer
from trl import RewardTrainer

from tests.conftest import settings
from tests.judge_server import JudgeServer, always_first, answer, error, fair

PAIRS = [
    {side: f"\n\nHuman: {i}?\n\nAssistant: {reply}" for side, reply in (("chosen", "Yes."), ("rejected", "No."))}
    for i in range(60)
]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def train(run, world, tmp_path):
    """Train SFT for a step on `data`; returns exit code, how many rows it had and the last line of stderr."""
    (tmp_path / "data").mkdir()

    def call(name: str, base: str = "model", **options) -> tuple[int, int | None, str]:
        config = settings(tmp_path / name, "sft", world, base, dataset=str(tmp_path / "data"), max_steps=1, **options)
        code, _, err = run("sft", "--config", config)
        manifest = tmp_path / name / "sft/manifest.json"
        rows = json.loads(manifest.read_text())["data"]["rows"] if manifest.exists() else None
        return code, rows, err.strip().rpartition("\n")[2]

    return call


@pytest.fixture
def judge(run, tmp_path, monkeypatch):
    """Judge good replies of ppo against poor ones of sft; returns exit code, scores and the last line of stderr."""
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    for name, word in (("sft", "poor"), ("ppo", "good")):
        row = {"reply": 0, "prompt": "", "completion": f" a {word} reply", "finished": True}
        (tmp_path / "samples").mkdir(exist_ok=True)
        (tmp_path / f"samples/{name}.jsonl").write_text(
            lines(row | {"dialogue": f"\n\nHuman: {i}?\n\nAssistant:"} for i in range(4))
        )
    config = {"output_dir": str(tmp_path), "policies": ["sft", "ppo"], "judge_pairs": ["ppo:sft"]}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(config))

    def call(*options) -> tuple[int, list[float], str]:
        code, _, err = run("judge", "--config", tmp_path / "eval.yaml", *options)
        path = tmp_path / "judge/verdicts.jsonl"
        verdicts = path.read_text().splitlines() if path.exists() else []
        return code, [json.loads(verdict)["score"] for verdict in verdicts], err.strip().rpartition("\n")[2]

    return call


def test_the_server_named_in_the_environment_alone_is_asked(judge, monkeypatch):
    """With OPENAI_BASE_URL and no key, "no judge ran"."""
    monkeypatch.delenv("OPENAI_API_KEY")
    with JudgeServer(fair) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert judge()[1] == [1.0] * 4


def test_a_second_server_named_in_the_environment_is_asked_itself(judge, monkeypatch):
    """The first server's verdicts were reported as the second's, which was asked nothing."""
    with JudgeServer(fair) as first, JudgeServer(always_first) as second:
        monkeypatch.setenv("OPENAI_BASE_URL", first.url)
        assert judge()[1] == [1.0] * 4
        monkeypatch.setenv("OPENAI_BASE_URL", second.url)
        code, _, line = judge()
        assert code == 2 and f"with base_url: {first.url}, and now it is {second.url}" in line and "FRESH=1" in line
        assert judge("--fresh")[1] == [0.5] * 4
        assert len(first.calls) == len(second.calls) == 8


def test_a_server_in_the_environment_changes_nothing_where_none_is_asked(judge, monkeypatch):
    """A finished result without a server was refused for it."""
    assert judge("--judge", "none")[0] == 0
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:9/v1")
    assert judge("--judge", "none")[0] == 0


@pytest.mark.parametrize(
    "form",
    ["<think>Both are short.</think>\n\n{}", "The better one is clear: {}", "```json\n{}\n```\nThe first has more."],
    ids=["reasoning", "prose", "text behind a fence"],
)
def test_a_judge_that_talks_is_understood(form, judge):
    """Every verdict with reasoning or prose around it was unparsable."""
    with JudgeServer(lambda call: answer(form.format(said(call)))) as server:
        assert judge("--base_url", server.url, "--retries", 0)[1] == [1.0] * 4


def said(call) -> str:
    return fair(call).body["choices"][0]["message"]["content"]


def test_an_exhausted_quota_ends_the_run_with_its_name(judge):
    """It was asked for again and again, and reported as a rate limit."""
    exhausted = error(429, "You exceeded your current quota", code="insufficient_quota")
    with JudgeServer(lambda call: exhausted) as server:
        code, _, line = judge("--base_url", server.url, "--retries", 1, "--concurrency", 1)
        assert (code, len(server.calls)) == (2, 1)
    assert "quota" in line


@pytest.mark.parametrize("folder", ["old", ".ipynb_checkpoints"])
def test_a_copy_of_the_data_counts_no_row_twice(folder, train, tmp_path):
    """Rows that stood in a folder beside, too, were trained on twice."""
    (tmp_path / "data/train.jsonl").write_text(lines(PAIRS))
    (tmp_path / "data/test.jsonl").write_text(lines(PAIRS[:1]))
    once = train("once")[:2]
    (tmp_path / "data" / folder).mkdir()
    (tmp_path / f"data/{folder}/train.jsonl").write_text(lines(PAIRS))
    assert once[0] == 0
    assert train("beside a copy")[:2] == once


def test_a_file_beside_its_compressed_form_is_refused(train, tmp_path):
    """Both were read, and every row was trained on twice."""
    (tmp_path / "data/train.jsonl").write_text(lines(PAIRS))
    (tmp_path / "data/train.jsonl.gz").write_bytes(gzip.compress(lines(PAIRS).encode()))
    (tmp_path / "data/test.jsonl").write_text(lines(PAIRS[:1]))
    code, rows, line = train("both")
    assert (code, rows) == (2, None)
    assert "train.jsonl and train.jsonl.gz" in line


@pytest.mark.parametrize("text", ["\ufeff{}", "\n{}\n \n\n"], ids=["byte order mark", "blank lines"])
def test_what_editors_leave_in_a_file_is_no_row_of_it(text, train, tmp_path):
    """A byte order mark or a blank line was called no HH-RLHF data."""
    (tmp_path / "data/test.jsonl").write_text(lines(PAIRS[:1]))
    (tmp_path / "data/train.jsonl").write_text(lines(PAIRS))
    plain = train("plain")[:2]
    (tmp_path / "data/train.jsonl").write_text(text.format(lines(PAIRS)), encoding="utf-8")
    assert plain[0] == 0
    assert train("edited")[:2] == plain


def test_a_prompt_in_words_is_read_whole(train, run, world, tmp_path):
    """Rows with a prompt of their own were refused; TRL's `extract_prompt` would leave "I th" of these."""
    for split, start in (("train", 0), ("test", 100)):
        rows = [
            {"prompt": f"{i}. I think", "chosen": f"{i}. I thought", "rejected": f"{i}. I thank"}
            for i in range(start, start + 60)
        ]
        (tmp_path / f"data/{split}.jsonl").write_text(lines(rows))
    code, _, line = train("run", base="gpt2")
    assert code == 0, line
    config = settings(tmp_path / "run", "eval", world, dataset=str(tmp_path / "data"), policies=["sft"])
    assert run("samples", "--config", config)[0] == 0
    samples = (tmp_path / "run/samples/sft.jsonl").read_text().splitlines()
    prompts = {json.loads(sample)["prompt"] for sample in samples}
    assert len(prompts) == 8 and prompts < {f"<user>{i}. I think<assistant>" for i in range(100, 160)}


def test_a_reward_model_reads_the_end_that_it_is_told(run, world, tmp_path, monkeypatch):
    """`reward --eos_token` was accepted, and replies ended in the tokenizer's own."""
    ends, step = set(), RewardTrainer.training_step

    def record(trainer, model, inputs, *args):
        ends.update(
            ids[mask.bool()][-1].item() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        )
        return step(trainer, model, inputs, *args)

    monkeypatch.setattr(RewardTrainer, "training_step", record)
    config = settings(tmp_path, "reward", world, model_name_or_path=str(world / "model"), max_steps=1)
    assert run("reward", "--config", config, "--eos_token", "~")[0] == 0
    assert ends == {AutoTokenizer.from_pretrained(world / "model").convert_tokens_to_ids("~")}


def test_an_evaluation_while_training_is_made(run, world, tmp_path):
    """`sft --eval_strategy steps` ended in a traceback: there were no rows to evaluate on."""
    config = settings(tmp_path, "sft", world, eval_strategy="steps", eval_steps=1, max_steps=2)
    assert run("sft", "--config", config)[0] == 0
    assert (tmp_path / "sft/metrics.jsonl").read_text().count('"eval_loss"') == 2
