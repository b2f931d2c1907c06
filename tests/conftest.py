import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may lean on the network
os.environ["OMP_NUM_THREADS"] = "1"  # so small models gain nothing from more, and a fork must have no threads
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="rlhf-trl-tests-")

import gc
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RECIPES = ("sft", "reward", "ppo", "grpo", "dpo")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small demo world: `data` (HH layout), `model` (tiny Llama) and `gpt2` (tiny GPT-2 with a chat
    template), untrained."""
    from rlhf_trl import demo

    folder = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "TRAIN_PAIRS", 400)
    patch.setattr(demo, "TEST_PAIRS", 60)
    pairs = demo.write_data(folder / "data", seed=0)
    demo.write_model(folder / "model", pairs, seed=0)
    patch.undo()

    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_cache_is_left():
    yield
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"])


def usable_pairs(folder: Path, split: str) -> list[dict]:
    """The rows of a data set that are pairs to learn from."""
    from rlhf_trl.config import DataConfig
    from rlhf_trl.preferences import load_pairs

    pairs = load_pairs(DataConfig(str(folder)), split)
    return [
        row for row in pairs.select_columns(["prompt", "chosen", "rejected", "subset", "dropped"]) if not row["dropped"]
    ]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command as a user would (`run("ppo", "--config", ...)`); returns exit code, stdout, stderr."""

    def call(command: str, *options) -> tuple[int, str, str]:
        recipe = command in RECIPES
        module = f"recipes.{command}" if recipe else "eval.__main__"
        first = [] if recipe else [command]
        monkeypatch.setattr(sys, "argv", [module, *first, *map(str, options)])
        capsys.readouterr()
        try:
            importlib.import_module(module).main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        gc.enable()  # which a command that ends early leaves off
        out, err = capsys.readouterr()
        return code, out, err

    return call


def settings(folder: Path, recipe: str, world: Path, base: str = "model", profile: str = "demo", **changes) -> Path:
    """Write a file with the options of a recipe as a profile has them, or of the evaluation ("eval"), with paths into
    `folder` and cut to a few steps."""
    from rlhf_trl.profiles import profile_values, read_profile
    from rlhf_trl.steps import STEPS, options_of

    source = ROOT / f"configs/{profile}.yaml"
    content = read_profile(source)
    if recipe == "eval":
        known = set().union(*(options_of(step) for step, row in STEPS.items() if row.is_evaluation))
        config = {key: value for key, value in content.items() if key in known} | content["eval"]
        config |= {"output_dir": str(folder), "prompts": 8, "batch_size": 4, "max_new_tokens": 8}
        config |= {"replies": 1, "curve_prompts": 4, "best_of": 4, "probes": str(ROOT / config["probes"])}
    else:
        config = profile_values(source, content, recipe, folder) | {"output_dir": str(folder / recipe)}
        config |= {"per_device_train_batch_size": 4, "warmup_steps": 0, "seed": 0}
    config["dataset"] = str(world / "data")
    if recipe == "sft":
        config["model_name_or_path"] = str(world / base)
    elif recipe == "ppo":
        config |= {"response_length": 8, "total_episodes": 32, "gradient_accumulation_steps": 4}
        config["num_mini_batches"] = 4
        config["local_rollout_forward_batch_size"] = 16
    elif recipe == "grpo":
        config |= {"max_completion_length": 8, "max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 8}
        config |= {"steps_per_generation": 1, "num_iterations": 1}
    if recipe in ("sft", "reward", "dpo"):
        config |= {"max_steps": 3, "logging_steps": 1}
    if recipe == "dpo" and ("beta" in changes or not (folder / "reward").exists()):
        del config["kl_strength"], config["reward_model_path"]
        config["beta"] = 0.3
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recipe}.yaml"
    config |= changes
    path.write_text(yaml.safe_dump({"eval": config} if recipe == "eval" else config))
    return path
