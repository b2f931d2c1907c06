"""The chain on a tiny model of each family: it runs, starts from where it should, and ends replies as the template."""

import math

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from eval import samples
from rlhf_trl import run as runs
from rlhf_trl.files import read_jsonl
from tests.conftest import RECIPES, settings
from tests.zoo import PADS, ZOO, build, texts_of

LORA = {"use_peft": True, "lora_r": 2, "lora_alpha": 4, "lora_target_modules": ["all-linear"]}
ENDS = {  # what a reply ends in
    "llama3": "<|eot_id|>",
    "qwen2.5-base": "<|im_end|>",
    "qwen2.5-instruct": "<|im_end|>",
    "qwen3.5": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "gemma3-nested": "<end_of_turn>",
    "mistral": "</s>",
    "gpt2": "<|endoftext|>",
    "gpt-neox": "<|endoftext|>",
}
WITH_BOS = ("llama3", "gemma3", "gemma3-nested", "mistral")
FIRST = {"ppo": ("objective/kl", 0), "grpo": ("kl", 0), "dpo": ("loss", math.log(2))}


@pytest.fixture(scope="module")
def texts(world):
    return texts_of(world)


@pytest.mark.parametrize("name", ZOO)
def test_the_chain_runs_on(name, texts, world, run, tmp_path, monkeypatch):
    base, asked, sample = build(name, tmp_path / "base", texts), [], samples.sample
    monkeypatch.setattr(samples, "sample", lambda *args: asked.extend(args[2]) or sample(*args))
    monkeypatch.setattr(runs, "plot_curves", lambda *_: None)  # which takes most of the time of so short a run
    shared = {"max_prompt_tokens": 160, "max_completion_tokens": 60}
    for recipe in RECIPES:
        changes = shared | {"logging_steps": 1, "save_strategy": "no"}
        changes |= LORA if name in ("qwen3.5", "gpt-neox") else {}
        if recipe == "sft":
            changes |= {"model_name_or_path": str(base)} | ({"pad_token": PADS[name]} if name in PADS else {})
        code, _, error = run(recipe, "--config", settings(tmp_path, recipe, world, **changes))
        assert code == 0, error
    profile = settings(tmp_path, "eval", world, curve_prompts=0, **shared)
    for step in ("samples", "score"):
        code, _, error = run(step, "--config", profile)
        assert code == 0, error

    for recipe, (metric, value) in FIRST.items():
        assert read_jsonl(tmp_path / recipe / "metrics.jsonl")[0][metric] == pytest.approx(value, abs=1e-5)
    for recipe in RECIPES:
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / recipe)
        assert tokenizer.eos_token == ENDS[name]
        if not (tmp_path / recipe / "adapter_config.json").exists():
            config = AutoConfig.from_pretrained(tmp_path / recipe)
            assert {config.eos_token_id, config.get_text_config().eos_token_id} == {tokenizer.eos_token_id}
            ends = GenerationConfig.from_pretrained(tmp_path / recipe).eos_token_id
            assert (ends if isinstance(ends, int) else ends[0]) == tokenizer.eos_token_id
    bos = AutoTokenizer.from_pretrained(base).bos_token_id
    assert asked and {ids.count(bos) for ids in asked} == {int(name in WITH_BOS)}
