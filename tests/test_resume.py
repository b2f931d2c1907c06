"""A run that is killed again and again ends as one that was not: in its weights, its record and its counters."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file, save_file

from rlhf_trl.files import read_jsonl
from tests.conftest import ROOT, settings
from tests.test_recipes import LORA

STEPS = 6


def attempt(recipe, config, moment=None):
    """Run a recipe in a fork (which saves the imports); it kills itself at a moment if one is given."""
    child = os.fork()
    if child == 0:
        try:
            if moment:
                moment(lambda: os.kill(os.getpid(), signal.SIGKILL))
            sys.argv = [recipe, "--config", str(config)]
            importlib.import_module(f"recipes.{recipe}").main()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL if moment else status == 0


def in_step(number):
    """In the middle of an optimizer step."""

    def arrange(die):
        from torch.optim import AdamW

        count = iter(range(1, 1000))
        step = AdamW.step
        AdamW.step = lambda *args, **kwargs: die() if next(count) == number else step(*args, **kwargs)

    return arrange


def while_saving(die):
    """The first checkpoint of this attempt: its model is there, its optimizer is half written."""
    import torch

    save = torch.save

    def save_half(content, path):
        if path.endswith("optimizer.pt"):
            with open(path, "wb") as file:
                file.write(b"half")
            die()
        save(content, path)

    torch.save = save_half


def before_publishing(die):
    from rlhf_trl import run as runs

    runs.plot_curves = lambda *_: die()


@pytest.fixture(scope="module")
def world_of_runs(world, tmp_path_factory):
    """SFT and reward model to start from, full and LoRA."""
    folders = {}
    for kind, base, changes in (("full", "model", {}), ("lora", "gpt2", LORA)):
        folders[kind] = tmp_path_factory.mktemp(kind)
        for recipe in ("sft", "reward"):
            attempt(recipe, settings(folders[kind], recipe, world, base, **changes))
    return folders


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("sft", "full"), ("reward", "lora"), ("ppo", "full"), ("ppo", "lora"), ("grpo", "lora"), ("dpo", "full")],
)
def test_kills_leave_no_trace(recipe, kind, world_of_runs, world, tmp_path):
    folder = world_of_runs[kind]
    changes = {"save_steps": 2, "logging_steps": 1} | (LORA if kind == "lora" else {})
    if recipe == "ppo":
        changes["total_episodes"] = 16 * STEPS
    else:
        changes["max_steps"] = STEPS
    if recipe in ("sft", "reward", "dpo"):
        changes["max_rows"] = 12  # so that they end in their second epoch
    if recipe != "sft":
        changes["model_name_or_path"] = str(folder / "sft")
    if recipe in ("ppo", "grpo"):
        changes["reward_model_path"] = str(folder / "reward")
    base = "model" if kind == "full" else "gpt2"
    unbroken = settings(tmp_path / "unbroken", recipe, world, base, **changes)
    attempt(recipe, unbroken)
    broken = settings(tmp_path / "broken", recipe, world, base, **changes)
    steps = 8 if recipe == "ppo" else 1  # optimizer steps a logged one: 2 epochs of 4 mini-batches
    run = tmp_path / "broken" / recipe
    for moment in (in_step(3 * steps), while_saving, before_publishing):
        attempt(recipe, broken, moment)
        assert not run.exists()
    attempt(recipe, broken)

    for name in [path.name for path in (tmp_path / "unbroken" / recipe).glob("*.safetensors")]:
        expected, weights = load_file(tmp_path / "unbroken" / recipe / name), load_file(run / name)
        assert max((weights[key] - expected[key]).abs().max() for key in expected) < 1e-5
    metrics, expected = (read_jsonl(tmp_path / way / recipe / "metrics.jsonl") for way in ("broken", "unbroken"))
    assert [row["step"] for row in metrics] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
    for row, other in zip(metrics, expected, strict=True):
        assert row.keys() == other.keys()
        for counter in ("episode", "epoch", "num_tokens", "learning_rate", "lr"):
            assert row.get(counter) == other.get(counter)
        assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=1e-5)
    assert {path.name for path in run.iterdir()} == {path.name for path in (tmp_path / "unbroken" / recipe).iterdir()}
    manifests = [json.loads((tmp_path / way / recipe / "manifest.json").read_text()) for way in ("broken", "unbroken")]
    assert manifests[0]["train"]["tokens"] == manifests[1]["train"]["tokens"]


def test_a_stopped_run_goes_on_only_with_what_it_was_made_from(world, tmp_path, run):
    config = settings(tmp_path, "sft", world, save_steps=1)
    attempt("sft", config, in_step(3))
    shutil.copytree(world / "model", tmp_path / "other")
    weights = load_file(tmp_path / "other/model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, tmp_path / "other/model.safetensors")
    for options, complaint in {
        ("--max_rows", 20): "on other data",
        ("--model_name_or_path", tmp_path / "other"): "from another model",
        ("--use_peft", "true"): "use_peft: False, and now it is True",
        ("--per_device_train_batch_size", 2): "per_device_train_batch_size: 4, and now it is 2",
    }.items():
        code, _, error = run("sft", "--config", config, *options)
        assert code == 2 and complaint in error and "--fresh" in error
    changes = ("--learning_rate", 0.5, "--max_grad_norm", 0.5, "--logging_steps", 2)
    code, out, error = run("sft", "--config", config, *changes)
    assert code == 0 and "goes on from" in out
    rate, norm = sorted(line for line in error.splitlines() if line.startswith("warning:"))
    assert "learning_rate: 0.005, and now it is 0.5; the old value stays" in rate
    assert "max_grad_norm: 1.0, and now it is 0.5; it goes on with the new value" in norm
    assert all(row["learning_rate"] <= 0.005 for row in read_jsonl(tmp_path / "sft/metrics.jsonl"))
    config = yaml.safe_load((tmp_path / "sft/config.yaml").read_text())
    assert (config["learning_rate"], config["max_grad_norm"]) == (0.005, 0.5)
    assert json.loads((tmp_path / "sft/manifest.json").read_text())["resumed_at"] == [2]


def test_two_processes_do_not_train_the_same_run(world, tmp_path, run):
    import fcntl

    config = settings(tmp_path, "sft", world)
    with (tmp_path / "sft.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, error = run("sft", "--config", config)
    assert code == 2 and "another process makes" in error
    assert not (tmp_path / "sft.partial").exists()


def test_what_was_logged_between_checkpoints_is_kept(world, tmp_path, run):
    """Where logging_steps does not divide the steps of the checkpoints, and where nothing else would be logged."""
    config = settings(tmp_path, "sft", world, save_steps=2, logging_steps=10)
    attempt("sft", config, in_step(3))
    assert run("sft", "--config", config)[0] == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "sft/metrics.jsonl")] == [2, 3]


def test_fresh_starts_again(world, tmp_path, run):
    config = settings(tmp_path, "sft", world, save_steps=1)
    attempt("sft", config, in_step(3))
    code, out, _ = run("sft", "--config", config, "--fresh", "--max_rows", 20)
    assert code == 0 and "goes on from" not in out
    assert [row["step"] for row in read_jsonl(tmp_path / "sft/metrics.jsonl")] == [1, 2, 3]


KEPT = """
import os
from pathlib import Path
from rlhf_trl.run import return_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

for prepare in (return_freed_memory, lambda: None):
    if os.fork() == 0:
        prepare()
        bytearray(8 * 2**20)  # when it is freed, glibc learns that blocks of this size come and go
        before, blocks = resident_mb(), []
        for _ in range(20):
            blocks.append(bytearray(8 * 2**20))
            blocks.append([bytearray(2000) for _ in range(100)])
        del blocks[::2]
        print(resident_mb() - before, flush=True)
        os._exit(0)
    os.wait()
"""


def test_freed_memory_goes_back_to_the_system():
    """As it must where gradient checkpointing is to save any: glibc would keep it behind what stays. In a process whose
    heap is young, as a recipe's is."""
    done = subprocess.run([sys.executable, "-c", KEPT], cwd=ROOT, capture_output=True, text=True, check=True)
    with_it, without = map(float, done.stdout.split())
    assert with_it < 40 < 100 < without
