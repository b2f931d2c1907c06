"""The Makefile: what is made from what, and nothing twice."""

import os
import subprocess

import pytest

from tests.conftest import RECIPES, ROOT


@pytest.fixture
def make(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    (tmp_path / "installed").write_text("")

    def call(*arguments: str) -> list[str]:
        """The commands that make would run."""
        command = ["make", "-n", *arguments, f"RUNS={tmp_path}", f"INSTALLED={tmp_path}/installed"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return [line for line in result.stdout.splitlines() if "recipes/" in line or " -m " in line]

    return call


def done(folder, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("")


def test_ppo_first_makes_what_it_needs_and_nothing_twice(make, tmp_path):
    steps = [next(r for r in ("rlhf_trl.demo", *RECIPES) if f"{r}.py" in s or f"-m {r}" in s) for s in make("ppo")]
    assert steps == ["rlhf_trl.demo", "sft", "reward", "ppo"]
    for name in ("model/config.json", "sft/manifest.json", "reward/manifest.json"):
        done(tmp_path / "demo", name)
    assert len(make("ppo")) == 1
    done(tmp_path / "demo", "ppo/manifest.json")
    assert make("ppo") == []
    (tmp_path / "demo/sft/manifest.json").touch()
    assert len(make("ppo")) == 2  # reward model and PPO stand on the SFT model


def test_options_reach_the_step_they_are_for(make):
    sft, reward, ppo = make("ppo", "PROFILE=gpt2", "MODEL=m", "DATA=d", "SEED=3", "ARGS=--kl_coef 1", "ARGS_sft=--x 2")
    assert "--kl_coef" in ppo and "--kl_coef" not in sft + reward
    assert "--x 2" in sft and "--x 2" not in reward + ppo
    assert "--model_name_or_path m" in sft and "--model_name_or_path m" not in reward
    for command in (sft, reward, ppo):
        assert "--dataset d" in command and "--seed 3" in command


def test_launchers_start_training_and_sampling(make):
    sft, reward, ppo, grpo, dpo, score = make("score", "PROFILE=gpt2", "LAUNCH=ddp --num_processes 4")
    for command in (sft, reward, ppo, grpo, dpo, score):
        assert "accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 4 " in command
    assert "zero3.yaml recipes/dpo.py" in " ".join(make("dpo", "PROFILE=gpt2", "LAUNCH=zero3").pop().split())
    for arguments in (
        ["ppo", "LAUNCH=fsdp2"],
        ["all", "LAUNCH=zero2"],
        ["sft", "LAUNCH=ddq"],
        ["sft", "PROFILE=accelerate"],
    ):
        with pytest.raises(subprocess.CalledProcessError) as error:
            make(*arguments)
        assert error.value.stderr.count("***") == 1


@pytest.mark.parametrize("path", (ROOT / "configs/accelerate").glob("*.yaml"), ids=lambda path: path.stem)
def test_launcher_configs_are_what_accelerate_takes(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 1


def test_the_evaluation_in_order_and_the_judge_whenever_asked(make, tmp_path):
    steps = [line.split(" -m eval ")[1].split()[0] for line in make("all") if " -m eval " in line]
    assert steps == ["data", "score", "judge", "reward-model", "report"]
    steps = [f"{step}/manifest.json" for step in (*RECIPES, "samples", "scores", "judge")]
    for name in ("model/config.json", *steps):
        done(tmp_path / "demo", name)
    assert len(make("judge")) == 1
    assert make("samples") == []


def test_make_alone_lists_targets_and_variables():
    text = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in (
        "demo",
        "all",
        *RECIPES,
        "data",
        "eval-reward",
        "samples",
        "score",
        "judge",
        "report",
        "test",
        "PROFILE",
        "MODEL",
        "DATA",
        "SEED",
        "RUNS",
        "ARGS",
    ):
        assert f"  {word}" in text or f", {word}" in text
