"""`make check`: it names what is wrong before anything trains, and how much memory there would have to be."""

import copy
import re
import shutil
from types import SimpleNamespace

import psutil
import pytest
import yaml
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import eval.check
from eval.config import JudgeConfig
from rlhf_trl import memory
from rlhf_trl.config import RECIPES
from rlhf_trl.errors import UserError
from rlhf_trl.profiles import read_profile, sections
from tests.conftest import ROOT
from tests.test_errors import no_hh, spoil_tokenizer

PROFILES = [path.stem for path in (ROOT / "configs").glob("*.yaml")]


# What fits models as small as the demo's
SHORT = {"max_steps": 3, "logging_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 4}
CUT = {
    "sft": {**SHORT, "pad_token": "<|pad|>"},
    "reward": SHORT,
    "ppo": {
        **{"total_episodes": 32, "response_length": 8, "per_device_train_batch_size": 4},
        **{"gradient_accumulation_steps": 4, "num_mini_batches": 4, "local_rollout_forward_batch_size": 16},
    },
    "grpo": {
        **{"max_steps": 2, "max_completion_length": 8, "per_device_train_batch_size": 8},
        **{"num_generations": 4, "steps_per_generation": 1, "num_iterations": 1},
    },
    "dpo": SHORT,
    "eval": {"prompts": 8, "max_new_tokens": 8, "batch_size": 4, "replies": 1, "curve_prompts": 4, "best_of": 4},
}


def write_profile(folder, world, changes, profile="demo"):
    """One like it, for models as small as the demo's; returns its file. Changes of "all" are at its top."""
    content = read_profile(ROOT / f"configs/{profile}.yaml")
    content |= {"base_model": str(world / ("model" if profile == "demo" else "gpt2")), "dataset": str(world / "data")}
    content |= {"max_prompt_tokens": 64, "max_completion_tokens": 32} | changes.get("all", {})
    content.pop("world", None)
    assert set(sections(content)) == set(CUT)
    for name, cut in CUT.items():
        content[name] |= cut | changes.get(name, {})
    folder.mkdir(exist_ok=True)
    path = folder / f"{profile}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# name: changes of the profile, preparation, the steps that are named and what is said of them
FAULTS = {
    "unknown key": ({"ppo": {"kl_coff": 1}}, None, "ppo: .*unknown key kl_coff; did you mean kl_coef"),
    "wrong type": ({"dpo": {"learning_rate": "fast"}}, None, "dpo: .*invalid float value"),
    "less than a PPO batch": (
        {"ppo": {"per_device_train_batch_size": 999, "gradient_accumulation_steps": 4}},
        None,
        "ppo: .*one batch of 3996 prompts",
    ),
    "mini-batches": ({"ppo": {"num_mini_batches": 3}}, None, "ppo: num_mini_batches=3 must divide"),
    "generations": ({"grpo": {"num_generations": 3}}, None, "grpo: .*(divisible|divide|multiple)"),
    "no model": ({"all": {"base_model": "{folder}/nowhere"}}, None, "sft, .*nowhere does not exist"),
    "no data": (
        {"all": {"dataset": "{folder}/nowhere"}},
        None,
        "sft, reward, ppo, grpo, dpo, samples: .*does not exist",
    ),
    "no HH data": ({"all": {"dataset": "{folder}/data"}}, no_hh, "line 1: no preference pair"),
    "hub out of reach": ({"dpo": {"dataset": "some/pairs"}}, None, "dpo: some/pairs .*could not be had from the hub"),
    "prompts too long": ({"dpo": {"max_prompt_tokens": 999}}, None, "dpo: .*do not fit the context of"),
    "nothing fits": ({"sft": {"max_prompt_tokens": 1}}, None, "sft: no row of the sft split"),
    "no pad token": (
        {"all": {"base_model": "{folder}/base"}, "sft": {"pad_token": None}},
        spoil_tokenizer,
        "sft, .*no pad token besides eos",
    ),
    "4 bits in full": (
        {"sft": {"load_in_4bit": True, "dtype": "bfloat16", "use_peft": False}},
        None,
        "sft: .*set use_peft: true",
    ),
    "replies too long": ({"eval": {"max_new_tokens": 999}}, None, "samples: .*999 do not fit the context"),
    "no vLLM": ({"grpo": {"use_vllm": True}}, None, "grpo: use_vllm needs vllm"),
    "no probes": ({"eval": {"probes": "{folder}/nowhere.yaml"}}, None, "samples: the probes .* cannot be read"),
    "no judge": ({"eval": {"judge": "openai"}}, None, "judge: .*OPENAI_API_KEY"),
}


@pytest.fixture
def guess(monkeypatch):
    """What takes a second a recipe, and is tested below."""
    estimate = memory.MemoryNeed(10**6, 10**6, process=0, weights=10**9, gradients=0, optimizer=0, activations=10**9)
    monkeypatch.setattr(eval.check, "estimate", lambda *_, **__: estimate)


def check(run, profile, *options):
    """Exit code, and what was said."""
    code, out, err = run("check", "--profile", profile, "--runs", profile.parent / "runs", *options)
    return code, out + err


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault, profile, run, world, tmp_path, monkeypatch, guess):
    changes, prepare, message = copy.deepcopy(FAULTS[fault])
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    if fault == "no judge":
        monkeypatch.delenv("OPENAI_API_KEY")
    if prepare:
        prepare(tmp_path, world)
    for step in changes.values():
        step |= {key: value.format(folder=tmp_path) for key, value in step.items() if isinstance(value, str)}
    code, said = check(run, write_profile(tmp_path, world, changes, profile))
    assert code == 2
    assert re.search(message, said), said
    assert "error: 1 of the checks failed" in said


@pytest.mark.parametrize(("gb", "remedy"), [(1.5, "lower per_device_train_batch_size"), (0.5, "take a smaller model")])
def test_memory_and_disk_that_do_not_suffice(gb, remedy, run, world, tmp_path, monkeypatch, guess):
    profile = write_profile(tmp_path, world, {})
    there = gb * 1e9 - psutil.Process().memory_info().rss
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=there))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    code, said = check(run, profile)
    assert code == 2
    assert "sft, reward, ppo, grpo, dpo: needs 2.0 GB of memory" in said and remedy in said
    assert "GB of disk" in said


@pytest.mark.parametrize(("gb", "verdict"), [(2.2, "tight"), (2.8, "fits")])
def test_memory_that_suffices(gb, verdict, run, world, tmp_path, monkeypatch, guess):
    there = gb * 1e9 - psutil.Process().memory_info().rss
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=there))
    code, said = check(run, write_profile(tmp_path, world, {}))
    assert code == 0
    assert len(re.findall(rf" {verdict}\n", said)) == len(RECIPES)


def test_a_sound_profile(run, world, tmp_path):
    profile = write_profile(tmp_path / "profile", world, {})
    code, said = check(run, profile)
    assert code == 0 and said.rstrip().endswith("demo can run on this machine")
    assert list(profile.parent.iterdir()) == [profile]  # nothing was made


def test_what_a_library_says_of_a_model_is_named(run, world, tmp_path):
    profile = write_profile(tmp_path, world, {})
    code, said = check(run, profile, "--options", "dpo=--use_peft true --lora_target_modules nowhere")
    assert code == 2
    assert re.search("dpo: LoRA does not fit .*nowhere.* not found", said) and "error: 1 of the checks failed" in said


def test_several_faults_are_all_named(run, world, tmp_path, monkeypatch, guess):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    profile = write_profile(tmp_path, world, {"eval": {"probes": "nowhere.yaml", "judge": "openai"}})
    faults = ("ppo=--num_mini_batches 3", "dpo=--max_steps few", "all=--seed 1")
    code, said = check(run, profile, "--options", *faults)
    assert code == 2 and "error: 4 of the checks failed" in said
    for part in ("num_mini_batches", "invalid int value: 'few'", "probes", "nobody can judge"):
        assert part in said


def test_a_misspelt_option_is_named(run, world, tmp_path):
    code, said = check(run, write_profile(tmp_path, world, {}), "--options", "dpo=--bata 1")
    assert code == 2 and "options of dpo: unknown key bata; did you mean beta?" in said


def test_a_server_in_the_environment_can_judge(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    eval.check.check_judge(JudgeConfig(output_dir=""), None)
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    with pytest.raises(UserError, match="nobody can judge"):
        eval.check.check_judge(JudgeConfig(output_dir=""), None)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_shipped_profiles_are_sound(profile, run, world, tmp_path, monkeypatch, guess):
    """On a small model, as theirs is on the hub."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    tokenizer = AutoTokenizer.from_pretrained(world / "gpt2")
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=1024, n_embd=16, n_layer=2, n_head=2)
    config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = [f"all=--dataset {world / 'data'} --base_model {tmp_path / 'model'}"]
    options += ["sft=--pad_token '<|pad|>'", "ppo=--gradient_accumulation_steps 1 --num_mini_batches 1"]
    code, out, err = run("check", "--profile", profile, "--runs", tmp_path / "out", "--options", *options)
    assert code == 0, out + err
