"""What a user can cause ends in one line and exit code 2, and nothing is written."""

import gzip
import json
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from eval.__main__ import COMMANDS
from rlhf_trl.config import RECIPES, DataConfig
from rlhf_trl.outline import outline
from rlhf_trl.splits import load_split
from rlhf_trl.steps import outlines
from tests.conftest import ROOT, settings


def spoil_reward_model(folder, world):
    (folder / "reward").mkdir()
    (folder / "reward/config.json").write_text((world / "model/config.json").read_text())


def spoil_tokenizer(folder, world):
    import shutil

    shutil.copytree(world / "gpt2", folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder / "base")


def few_policy_prompts(folder, world):
    (folder / "data").mkdir()
    lines = gzip.decompress((world / "data/helpful/train.jsonl.gz").read_bytes()).decode().splitlines()[:40]
    (folder / "data/train.jsonl").write_text("\n".join(lines))


def no_hh(folder, world):
    (folder / "data").mkdir()
    (folder / "data/train.jsonl").write_text('{"text": "hello"}\n')


def cut_off(folder, world):
    (folder / "data").mkdir()
    (folder / "data/train.jsonl.gz").write_bytes((world / "data/helpful/train.jsonl.gz").read_bytes()[:-500])


def empty_split(folder, world):
    (folder / "data").mkdir()
    pairs, *_ = load_split(DataConfig(dataset=str(world / "data")), "reward")
    pair = {side: pairs[0]["prompt"] + pairs[0][side] for side in ("chosen", "rejected")}
    (folder / "data/train.jsonl").write_text(json.dumps(pair))


def blocked_runs(folder, world):
    (folder / "blocked").write_text("")


CASES = {
    "unknown key": ("sft", {"bete": 1}, None, "unknown key bete"),
    "wrong type": ("ppo", {"kl_coef": "low"}, None, "invalid float value: 'low'"),
    "no data folder": ("sft", {"dataset": "./nowhere"}, None, "does not exist"),
    "no model folder": ("sft", {"model_name_or_path": "./nowhere"}, None, "does not exist"),
    "hub data out of reach": ("sft", {"dataset": "Anthropic/hh-rlhf"}, None, "could not be had from the hub"),
    "hub model out of reach": ("sft", {"model_name_or_path": "openai-community/gpt2"}, None, "could not be had"),
    "no HH data": ("sft", {"dataset": "{folder}/data"}, no_hh, "line 1: no preference pair"),
    "truncated gz": ("sft", {"dataset": "{folder}/data"}, cut_off, "damaged, cut off"),
    "empty split": ("sft", {"dataset": "{folder}/data"}, empty_split, "the sft split of"),
    "GRPO batch": (
        "grpo",
        {"num_generations": 3, "model_name_or_path": "{world}/model", "reward_model_path": "{folder}/good"},
        None,
        "divisible",
    ),
    "less than a PPO batch": (
        "ppo",
        {"dataset": "{folder}/data", "model_name_or_path": "{world}/model", "reward_model_path": "{folder}/good"},
        few_policy_prompts,
        "at least one batch of 16",
    ),
    "prompts beyond the context": (
        "ppo",
        {"max_prompt_tokens": 90, "model_name_or_path": "{world}/gpt2", "reward_model_path": "{folder}/good"},
        None,
        "do not fit the context of 96",
    ),
    "no reward model": (
        "ppo",
        {"model_name_or_path": "{world}/model"},
        spoil_reward_model,
        "holds no reward model",
    ),
    "tokenizer without pad": ("sft", {"model_name_or_path": "{folder}/base"}, spoil_tokenizer, "no pad token"),
    "unwritable runs folder": ("sft", {"output_dir": "{folder}/blocked/sft"}, blocked_runs, "cannot write to"),
    "4 bit without LoRA": ("sft", {"load_in_4bit": True}, None, "use_peft"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, run, world, tmp_path):
    recipe, changes, prepare, message = CASES[case]
    if prepare:
        prepare(tmp_path, world)
    if changes.get("reward_model_path"):
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(world / "model", num_labels=1)
        model.config.reward_mean, model.config.reward_std = 0.0, 1.0
        model.save_pretrained(tmp_path / "good")
    changes = {k: v.format(folder=tmp_path, world=world) if isinstance(v, str) else v for k, v in changes.items()}
    config = settings(tmp_path, recipe, world, **changes)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(recipe, "--config", config)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert err.rstrip().endswith(lines[0])  # the last line, with no traceback
    assert message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_each_command_names_the_one_to_run_first(run, world, tmp_path):
    config = settings(tmp_path, "eval", world)
    for command, message in {
        "samples": "does not exist",
        "score": "reward does not exist; check the path or make it first, with 'make reward'",
        "judge": "run 'make score' first",  # by the true rule
        "report": "run 'make score' first",
        "reward-model": "make it first, with 'make reward'",
    }.items():
        code, _, err = run(command, "--config", config)
        assert (code, message in err) == (2, True), command


def test_the_demo_checks_its_folder_too(tmp_path, monkeypatch, capsys):
    from rlhf_trl import demo
    from rlhf_trl.cli import cli

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["demo", "--output_dir", str(tmp_path / "file/demo")])
    with pytest.raises(SystemExit, match="2"):
        cli(demo.main)()
    assert capsys.readouterr().err.startswith("error: cannot write to")


def test_a_broken_test_split_is_found_before_the_training(run, world, tmp_path):
    cut_off(tmp_path, world)
    (tmp_path / "data/test.jsonl.gz").write_bytes((tmp_path / "data/train.jsonl.gz").read_bytes())
    (tmp_path / "data/train.jsonl.gz").write_bytes((world / "data/helpful/train.jsonl.gz").read_bytes())
    code, _, err = run("sft", "--config", settings(tmp_path, "sft", world, dataset=str(tmp_path / "data")))
    assert code == 2
    assert "test.jsonl.gz cannot be read" in err


@pytest.mark.parametrize("name", ["missing/", "my data", "foo--bar"])
def test_what_can_be_no_hub_name_is_one_line_too(run, world, tmp_path, name):
    code, _, err = run("sft", "--config", settings(tmp_path, "sft", world, dataset=name))
    assert code == 2
    assert "error: " in err


def from_the_shell(folder, *words):
    """Exit code, stdout, stderr, and the packages that were imported."""
    command = [sys.executable, "-X", "importtime", *map(str, words)]
    result = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    imports, said = [], []
    for line in result.stderr.splitlines():
        (imports if line.startswith("import time:") else said).append(line)
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
    return result.returncode, result.stdout, said, packages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kl_coff", "1"], "unknown key kl_coff; did you mean kl_coef?"),
        ([], "the dataset folder runs/demo/dataset does not exist; check the path or make it first"),
    ],
)
def test_a_mistake_is_found_before_anything_slow_is_imported(options, message, tmp_path):
    outline("trl.ModelConfig"), outline("trl.experimental.ppo.PPOConfig")  # known from an earlier run
    recipe = [ROOT / "recipes/ppo.py", "--config", ROOT / "configs/demo.yaml"]
    code, _, said, packages = from_the_shell(tmp_path, *recipe, *options)
    assert (code, said) == (2, [f"error: {message}"])
    assert not packages & {"torch", "datasets", "peft"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [*RECIPES, *COMMANDS])
def test_help_imports_nothing_slow(command, tmp_path):
    for recipe in RECIPES:
        outlines(recipe)
    words = [ROOT / f"recipes/{command}.py"] if command in RECIPES else ["-m", "eval", command]
    code, out, said, packages = from_the_shell(tmp_path, *words, "--help")
    assert (code, said) == (0, [])
    assert "--config FILE" in out and ("--output_dir" in out) == (
        command not in ("chat", "check")
    )  # which write nothing
    assert not packages & {"torch", "datasets", "peft"}


def test_the_traceback_is_there_when_asked_for(run, world, tmp_path, monkeypatch):
    from rlhf_trl.errors import UserError

    monkeypatch.setenv("RLHF_TRL_TRACEBACK", "1")
    with pytest.raises(UserError):
        run("sft", "--config", settings(tmp_path, "sft", world, bete=1))
