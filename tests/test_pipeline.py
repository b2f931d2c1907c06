"""The Makefile: what is made from what, and nothing twice."""

import os
import re
import shutil
import subprocess
import sys

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


def test_dpo_needs_a_reward_model_only_for_the_strength_of_its_kl(make):
    assert ["--reward_model_path" in step for step in make("dpo", "PROFILE=gpt2")] == [False, False, True]
    for options in ("ARGS=--beta 0.1", "ARGS_dpo=--beta=0.1"):
        sft, dpo = make("dpo", "PROFILE=gpt2", options)
        assert "sft.py" in sft and "dpo.py" in dpo and "--reward_model_path" not in dpo


def test_options_reach_the_step_they_are_for(make):
    sft, reward, ppo = make(
        "ppo", "PROFILE=gpt2", "MODEL=m", "DATA=d", "SEED=3", "ARGS=--kl_strength 1", "ARGS_sft=--x 2"
    )
    assert "--kl_strength" in ppo and "--kl_strength" not in sft + reward
    assert "--x 2" in sft and "--x 2" not in reward + ppo
    assert "--model_name_or_path m" in sft and "--model_name_or_path m" not in reward
    for command in (sft, reward, ppo):
        assert "--dataset d" in command and "--seed 3" in command


def test_chat_is_with_a_run_or_a_folder_and_trains_nothing(make, tmp_path):
    run = tmp_path / "demo"
    for policy, options in {run / "sft": [], run / "ppo": ["POLICY=ppo"], "./x": ["POLICY=./x"]}.items():
        (command,) = make("chat", *options, "ARGS=--greedy true")
        assert f" -m eval chat --policy {policy} " in command and "--greedy true" in command


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


ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
LAUNCHED = {  # what a process is told
    "single_gpu": {"CUDA_VISIBLE_DEVICES": "0"},
    "ddp": {},
    "zero2": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    },
}


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "configs/accelerate").glob("*.yaml")])
def test_launcher_configs_start_what_they_say(name, monkeypatch):
    """On eight machines, too, each of which starts its own processes."""
    from accelerate.commands import launch

    machines = [] if name == "single_gpu" else ["--num_machines", "8", "--num_processes", "64", "--machine_rank", "1"]
    config = ["--config_file", f"{ROOT}/configs/accelerate/{name}.yaml"]
    started = {}
    for kind in ("simple_launcher", "multi_gpu_launcher", "deepspeed_launcher"):
        monkeypatch.setattr(launch, kind, lambda args, kind=kind: started.update({kind: args}))
    address = ["--main_process_ip", "localhost", "--main_process_port", "0"]
    launch.launch_command(launch.launch_command_parser().parse_args([*config, *machines, *address, "recipe.py"]))
    ((kind, args),) = started.items()
    if kind == "deepspeed_launcher":
        command, environment = launch.prepare_deepspeed_cmd_env(args)
        assert command is None  # not DeepSpeed's own launcher, which would log in to the others
    elif kind == "multi_gpu_launcher":
        environment = launch.prepare_multi_gpu_env(args)
    else:
        _, environment = launch.prepare_simple_launcher_cmd_env(args)
    assert environment.items() >= LAUNCHED[name].items()
    assert (kind == "simple_launcher") == (not machines)
    if machines:
        assert (int(args.nnodes), int(args.nproc_per_node)) == (8, 8)


def test_the_image_can_be_built_from_what_its_layers_hold(tmp_path):
    """The layer of the dependencies has hardly any of the code."""
    text = (ROOT / "Dockerfile").read_text()
    names, commands = re.search(r"^COPY --chown=trainer (.+) \./\nRUN .*\n(.+)$", text, re.MULTILINE).groups()
    for name in names.split():
        shutil.copy(ROOT / name, tmp_path)
    commands = commands.replace("make ", "make -n ")
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip" in done.stdout
    look_up = re.search(r'python -c "(.+)"$', text, re.MULTILINE)[1]
    subprocess.run([sys.executable, "-c", look_up], cwd=ROOT, check=True)


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
