"""Two processes on the CPU do what one does: all recipes, full and LoRA, and the evaluation."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from peft import AutoPeftModelForCausalLM
from scipy import stats
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_trl.files import read_jsonl
from tests.conftest import RECIPES, ROOT, settings
from tests.test_recipes import LORA

KINDS = {"full": ("model", {}), "lora": ("gpt2", LORA)}
IN_PAIRS = ("reward", "dpo")
BATCH = {"sft": 8, "reward": 8, "dpo": 8, "grpo": 16, "ppo": 4}  # sequences a device where there is one


def write(folder, recipe, world, kind, processes, **changes):
    base, lora = KINDS[kind]
    length = {"ppo": {"total_episodes": 48}, "grpo": {"max_steps": 3}}.get(recipe, {"max_steps": 6})
    if recipe in IN_PAIRS:  # in their second epoch when they are stopped
        length |= {"max_rows": 32, "save_steps": 5, "eval_strategy": "steps", "eval_steps": 3}
        length["per_device_eval_batch_size"] = 1  # Trainer fills a last batch up with rows that were there before
    batch = {"per_device_train_batch_size": BATCH[recipe] // processes}
    return settings(folder, recipe, world, base, **lora | length | batch | changes)


@pytest.fixture(scope="module")
def pair(world, tmp_path_factory):
    """Folders of the same runs, in two processes, where those in pairs are stopped and go on, and in one."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    jobs = []
    for kind, recipe in itertools.product(KINDS, RECIPES):
        config = write(two / kind, recipe, world, kind, 2)
        jobs += [f"{recipe}:5={config}"] * (recipe in IN_PAIRS) + [f"{recipe}={config}"]
    policies = [f"{name}={two / 'lora' / name}" for name in ("sft", "ppo", "dpo")]
    evaluation = {"policies": policies, "reward_model": str(two / "lora/reward")}
    profile = settings(two, "eval", world, **evaluation)
    jobs += [f"{step}={profile}" for step in ("samples", "score")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, "tests/two_processes.py", *jobs],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    settings(one, "eval", world, **evaluation)
    return two, one, result.stdout + result.stderr


def test_what_two_processes_made_is_saved_once_and_loads(pair):
    two, _, output = pair
    for kind in KINDS:
        for recipe in RECIPES:
            folder = two / kind / recipe
            if recipe == "reward":
                AutoModelForSequenceClassification.from_pretrained(folder)
            else:
                adapter = kind == "lora" and recipe != "sft"
                (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(folder)
            steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if "eval_loss" not in row]
            assert steps == list(range(1, len(steps) + 1))
            manifest = json.loads((folder / "manifest.json").read_text())
            assert manifest["resumed_at"] == [5] * (recipe in IN_PAIRS)
            assert len(re.findall(rf"{recipe}: done in .* {re.escape(str(folder))}\n", output)) == 1
        ratios = [row["val/ratio"] for row in read_jsonl(two / kind / "ppo/metrics.jsonl")]
        assert ratios == pytest.approx([1] * len(ratios), abs=0.05)
    assert output.count("===training policy===") == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", IN_PAIRS)
def test_losses_are_those_of_one_process(recipe, kind, pair, world, run, tmp_path):
    two, _, _ = pair
    config = write(tmp_path, recipe, world, kind, 1, model_name_or_path=str(two / kind / "sft"))
    assert run(recipe, "--config", config)[0] == 0
    for name, count in {"loss": 6, "eval_loss": 2}.items():
        losses = [
            [row[name] for row in read_jsonl(folder / "metrics.jsonl") if name in row]
            for folder in (tmp_path / recipe, two / kind / recipe)
        ]
        assert losses[1] == pytest.approx(losses[0], abs=1e-3) and len(losses[0]) == count


@pytest.mark.parametrize(("recipe", "reward"), [("ppo", "objective/scores"), ("grpo", "reward")])
def test_rewards_are_within_the_spread_of_one_process(recipe, reward, pair, world, run, tmp_path):
    """The run in two processes is a draw like the others: it lies in their 99% prediction interval."""
    two, _, _ = pair
    parents = {"model_name_or_path": str(two / "full/sft"), "reward_model_path": str(two / "full/reward")}
    rewards = []
    for seed in range(5):
        folder = tmp_path / str(seed)
        assert run(recipe, "--config", write(folder, recipe, world, "full", 1, **parents, seed=seed))[0] == 0
        rewards.append(read_jsonl(folder / recipe / "metrics.jsonl")[-1][reward])
    mean, spread = stats.tmean(rewards), stats.tstd(rewards)
    margin = stats.t.ppf(0.995, len(rewards) - 1) * spread * (1 + 1 / len(rewards)) ** 0.5
    assert read_jsonl(two / "full" / recipe / "metrics.jsonl")[-1][reward] == pytest.approx(mean, abs=margin)


def test_an_evaluation_shared_out_is_the_same(pair, run):
    two, one, _ = pair
    for step in ("samples", "score"):
        assert run(step, "--config", one / "eval.yaml")[0] == 0
    for path in (one / "scores").rglob("*.jsonl"):
        rows, others = read_jsonl(path), read_jsonl(two / "scores" / path.relative_to(one / "scores"))
        assert [row["completion"] for row in rows] == [row["completion"] for row in others]
        for field in ("proxy", "kl"):
            values = [[row[field] or 0 for row in file] for file in (rows, others)]
            assert values[0] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")]
)
def test_ppo_refuses_launchers_it_cannot_work_with(variable, name, world, run, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "true")
    code, _, error = run("ppo", "--config", settings(tmp_path, "ppo", world))
    assert (code, len(error.splitlines())) == (2, 1)
    assert f"PPO does not work with {name}" in error and "LAUNCH=ddp" in error


def test_what_cannot_be_shared_out_says_so(run, world, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = run("report", "--config", settings(tmp_path, "eval", world))
    assert code == 2 and "report runs in one process" in error
