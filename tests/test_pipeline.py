"""The graph of steps and the Makefile, which hands over to it: what is needed, and with which options it runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from rlhf_trl import cli, pipeline
from rlhf_trl.errors import UserError
from rlhf_trl.pipeline import Graph, GraphConfig
from tests.conftest import RECIPES, ROOT


@pytest.fixture
def graph(tmp_path):
    def of(*options, profile="gpt2", **more):
        return Graph(
            GraphConfig(profile=f"{ROOT}/configs/{profile}.yaml", runs=str(tmp_path), options=[*options], **more)
        )

    return of


def said(words, option):
    """The value of an option of a command line, the last one counting."""
    return next((words[i + 1] for i in reversed(range(len(words))) if words[i] == f"--{option}"), None)


def test_what_a_step_needs_runs_before_it(graph):
    demo = graph(profile="demo")
    assert demo.order(["ppo"]) == ["demo-data", "sft", "reward", "ppo"]
    assert demo.order(["data"]) == ["demo-data", "data"]
    assert demo.order(["eval-reward"]) == ["demo-data", "sft", "reward", "eval-reward"]
    policies = ["sft", "reward", "ppo", "grpo", "dpo"]
    assert graph().order(["samples"]) == [*policies, "samples"]
    assert graph().order(["judge"]) == [*policies, "samples", "judge"]  # an LLM judges replies
    assert demo.order(["judge"]) == ["demo-data", *policies, "samples", "score", "judge"]  # a rule has scored them
    assert graph().order(["report"]) == ["data", *policies, "eval-reward", "samples", "score", "judge", "report"]
    assert graph("eval=--policies sft dpo").order(["samples"]) == ["sft", "reward", "dpo", "samples"]


def test_dpo_needs_a_reward_model_only_for_the_strength_of_its_kl(graph):
    assert graph().order(["dpo"]) == ["sft", "reward", "dpo"]
    for option in ("dpo=--beta 0.1", "dpo=--beta=0.1"):
        assert graph(option).order(["dpo"]) == ["sft", "dpo"]
    assert graph("ppo=--reward_model_path elsewhere").order(["ppo"]) == ["sft", "ppo"]


def test_options_reach_the_steps_that_have_them(graph, tmp_path):
    given = graph("all=--base_model m --dataset d --seed 3", "ppo=--run_name 'a b' --kl_strength 1", "eval=--prompts 9")
    for step in ("data", *RECIPES, "samples", "score", "eval-reward"):
        words = given.arguments(step)
        # to analyse the data takes no chance
        assert (said(words, "dataset"), said(words, "seed")) == ("d", None if step == "data" else "3"), step
        assert said(words, "output_dir") == str(tmp_path / "gpt2" / (step if step in RECIPES else "")), step
    assert said(given.arguments("judge"), "dataset") is None  # which reads no data
    assert [said(given.arguments(step), "prompts") for step in ("samples", "score", "judge")] == ["9", None, None]
    assert said(given.arguments("sft"), "model_name_or_path") == said(given.arguments("data"), "tokenizer") == "m"
    assert said(given.arguments("ppo"), "run_name") == "a b"
    assert said(given.arguments("grpo"), "kl_strength") is said(given.arguments("ppo"), "model_name_or_path") is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("pppo=--seed 1", "unknown step pppo; did you mean ppo"),
        ("ppo=--sead 1", "options of ppo: unknown key sead; did you mean seed"),
        ("all=--sead 1", "options of all: unknown key sead"),
        ("all=--learning_rate 1", "learning_rate means another thing in each method"),
        ("all=--model_name_or_path m", "the graph sets it; name base_model"),
        ("ppo=--run_name 'a", "options of ppo cannot be read .* close the quotation"),
        ("ppo=--fresh", "fresh has no place here; set FRESH=1"),
        ("eval=--output_dir o", "output_dir has no place here; set RUNS"),
        ("ppo=seed 1", "options begin with --, and seed does not"),
    ],
)
def test_options_that_no_step_has_are_refused(option, message, graph):
    with pytest.raises(UserError, match=message):
        graph(option)


def test_launchers_start_training_and_sampling(graph):
    ddp, zero = graph(launch="ddp --num_processes 4"), graph(launch="zero3")
    for step in (*RECIPES, "samples", "score"):
        assert ddp.command(step)[1:6] == [
            *("launch", "--config_file", "configs/accelerate/ddp.yaml", "--num_processes", "4")
        ]
    for step in ("data", "judge", "report", "eval-reward"):
        assert ddp.command(step)[:3] == [sys.executable, "-m", "eval"]
    assert zero.command("dpo")[3] == "configs/accelerate/zero3.yaml"
    assert zero.command("score")[3] == "configs/accelerate/ddp.yaml"
    for target, launch in (("ppo", "fsdp2"), ("report", "zero2")):
        with pytest.raises(UserError, match="PPO works with LAUNCH=ddp"):
            pipeline.run(graph(launch=launch), [target])
    with pytest.raises(UserError, match="there is no launcher ddq; choose one of ddp"):
        graph(launch="ddq")
    with pytest.raises(UserError, match=r"there is no profile configs/gtp2.yaml"):
        GraphConfig(profile="gtp2")


def test_a_step_that_fails_ends_all_with_its_own_code(tmp_path):
    command = [sys.executable, "-m", "rlhf_trl.pipeline", "ppo", "--profile", "smollm2", "--runs", str(tmp_path)]
    done = subprocess.run([*command, "--options", "all=--dataset ./nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the dataset folder ./nowhere does not exist; check the path or make it first\n",
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def make(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    (tmp_path / "installed").write_text("")

    def call(*arguments: str) -> list[list[str]]:
        """The words of the commands that make would run."""
        command = ["make", "-n", *arguments, f"RUNS={tmp_path}", f"INSTALLED={tmp_path}/installed"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return [shlex.split(line) for line in result.stdout.splitlines() if " -m " in line]

    return call


def handed_over(words):
    """Targets, and the graph's settings as it reads them."""
    start = words.index("--profile")
    ((config,), _) = cli.fill(None, (GraphConfig,), words[start:])
    return words[2:start], config


def test_make_hands_over_all_that_it_is_told(make, tmp_path):
    (command,) = make(
        *("reward", "ppo", "PROFILE=gpt2", "MODEL=my m", "DATA=d", "SEED=3", "FRESH=1", "LAUNCH=ddp --num_processes 4"),
        *("ARGS=--run_name it's", "ARGS_sft=--x 2", "ARGS_all=--max_rows 5"),
    )
    (module, *targets), config = handed_over(command)
    assert (module, targets) == ("rlhf_trl.pipeline", ["reward", "ppo"])
    assert (config.profile, config.runs) == ("configs/gpt2.yaml", str(tmp_path))
    assert (config.fresh, config.launch) == (True, "ddp --num_processes 4")
    options = {tuple(option.replace("'d'", "d").split("=", 1)) for option in config.options}
    assert options == {
        *(("all", "--base_model 'my m' --dataset d --seed 3"), ("all", "--max_rows 5"), ("sft", "--x 2")),
        *(("reward", "--run_name it's"), ("ppo", "--run_name it's")),
    }
    for target in ("all", "check", "status"):
        (command,) = make(target, "ARGS=--max_rows 5")
        assert "all=--max_rows 5" in handed_over(command)[1].options
    (command,) = make("demo")
    assert handed_over(command)[0][1:] == ["all"]


def test_chat_is_with_a_run_or_a_folder_and_trains_nothing(make, tmp_path):
    run = tmp_path / "demo"
    for policy, options in {run / "sft": [], run / "ppo": ["POLICY=ppo"], "./x": ["POLICY=./x"]}.items():
        (command,) = make("chat", *options, "ARGS=--temperature 0")
        assert command[1:] == ["-m", "eval", "chat", "--policy", str(policy), "--temperature", "0"]


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
