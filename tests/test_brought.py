"""Models that people bring: an adapter as the start or without its base, a reward model that is not ours."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from rlhf_trl.config import DataConfig
from rlhf_trl.files import read_jsonl
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import REPLY, messages
from rlhf_trl.hub import lineage
from rlhf_trl.models import load_policy, lora
from rlhf_trl.provenance import LAYOUT
from rlhf_trl.rewards import Reward, load_reward_model
from tests.conftest import settings

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LORA = {
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj"],
}


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(20, 60)[None]).logits.float()


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory):
    """A LoRA adapter on the world's model, with random weights and no tokenizer, as peft saves it."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [{}, LORA])
@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_an_adapter_as_the_start_is_merged(recipe, lora, adapter, run, world, tmp_path):
    """What is published is base, adapter and training together, for transformers alone."""
    start = logits(AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload())
    changes = {"model_name_or_path": str(adapter), "learning_rate": 1e-6, "splits": None, **lora}
    if recipe == "dpo":
        changes["beta"] = 0.3
    code, _, error = run(recipe, "--config", settings(tmp_path, recipe, world, **changes))
    assert code == 0, error
    published = logits(AutoModelForCausalLM.from_pretrained(tmp_path / recipe))
    assert (published - start).abs().max() < 1e-3
    assert (published - logits(AutoModelForCausalLM.from_pretrained(world / "model"))).abs().max() > 1e-2


def test_an_adapter_finds_its_base_beside_it_when_both_have_moved(adapter, world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "profile/model")
    shutil.copytree(adapter, tmp_path / "profile/dpo")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for folder in ("dpo", "other/dpo"):
        (tmp_path / "profile" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copytree(adapter, tmp_path / "profile" / folder, dirs_exist_ok=True)
        moved = config | {"base_model_name_or_path": "/somewhere/else/model"}
        (tmp_path / "profile" / folder / "adapter_config.json").write_text(json.dumps(moved))
    for folder in ("dpo", "other/dpo"):
        source = str(tmp_path / "profile" / folder)
        tokenizer = load_frame(source).tokenizer
        found, expected = (logits(load_policy(path, tokenizer, "float32")) for path in (source, str(adapter)))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("changed", [False, True])
def test_a_base_that_is_gone_or_changed_is_named(changed, adapter, run, world, tmp_path):
    shutil.copytree(adapter, tmp_path / "brought")
    config = json.loads((adapter / "adapter_config.json").read_text())
    moved = config | {"base_model_name_or_path": "/somewhere/else/model"}
    (tmp_path / "brought/adapter_config.json").write_text(json.dumps(moved))
    if changed:
        shutil.copytree(world / "gpt2", tmp_path / "model")
        made_of = {"model": {"path": "/somewhere/else/model", "sha256": "another"}}
        manifest = {"layout": LAYOUT, "step": "dpo", "folder": "/somewhere/else/brought", "sha256": "its own"}
        (tmp_path / "brought/manifest.json").write_text(json.dumps(manifest | {"made_of": made_of}))
    path = settings(tmp_path / "runs", "sft", world, model_name_or_path=str(tmp_path / "brought"))
    code, _, error = run("sft", "--config", path)
    assert code == 2 and "was trained on /somewhere/else/model, which is not there any more" in error
    assert not (tmp_path / "runs/sft.partial").exists()


@pytest.mark.parametrize(
    ("given", "meant"), [(["q_proj"], {"q_proj"}), (["all-linear"], "all-linear"), ([".*_proj"], ".*_proj")]
)
def test_one_layer_of_lora_is_a_name_and_not_an_expression(given, meant):
    """TRL makes a list of one a string, and peft matches that with the whole path."""
    assert lora(ModelConfig(use_peft=True, lora_target_modules=given), "CAUSAL_LM").target_modules == meant


@pytest.fixture(scope="module")
def foreign(world, tmp_path_factory):
    """A chat model and a reward model that was made elsewhere, trained on whole conversations of its template."""
    folder = tmp_path_factory.mktemp("foreign")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_pretrained(world / "model")
    reward = AutoModelForSequenceClassification.from_pretrained(world / "model", num_labels=1)
    for name, model in (("policy", policy), ("reward", reward)):
        model.resize_token_embeddings(len(tokenizer))
        model.config.pad_token_id = tokenizer.pad_token_id
        if name == "reward":
            torch.nn.init.normal_(model.score.weight)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@torch.no_grad()
def own_format(folder, dialogue, reply):
    """The raw score of a whole conversation as the reward model's own template writes it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    chat = [*messages(dialogue.removesuffix(REPLY)), {"role": "assistant", "content": reply.strip()}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    return model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()


def test_the_card_reads_a_reward_model_in_its_own_format(foreign, run, world, tmp_path):
    path = settings(tmp_path, "eval", world, reward_model=str(foreign / "reward"))
    code, _, error = run("reward-model", "--config", path)
    assert code == 0, error
    for row in read_jsonl(tmp_path / "reward-model/pairs.jsonl")[:8]:
        dialogue = tokenless(row["prompt"])
        for side in ("chosen", "rejected"):
            assert row[f"scores_{side}"] == pytest.approx(own_format(foreign / "reward", dialogue, row[side]), abs=1e-4)


def tokenless(prompt):
    """The HH dialogue that a ChatML prompt was made of."""
    turns = prompt.removesuffix("<|im_start|>assistant\n").split("<|im_end|>\n")
    speakers = {"user": "Human", "assistant": "Assistant"}
    parts = [turn.removeprefix("<|im_start|>").partition("\n")[::2] for turn in turns if turn]
    return "".join(f"\n\n{speakers[role]}: {text}" for role, text in parts)


def test_what_ppo_and_grpo_learn_from_is_its_own_format_with_a_measured_scale(foreign, world):
    data = DataConfig(dataset=str(world / "data"), max_prompt_tokens=96)
    policy = load_frame(str(foreign / "policy"))
    model, frame = load_reward_model(str(foreign / "reward"), data, 0, policy)
    assert frame.rest == frame.tokenizer("\n")["input_ids"]
    dialogue = "\n\nHuman: What colour is the sky?\n\nAssistant:"
    prompt = policy.prompt(dialogue)
    finished, cut_off = (policy.reply_ids(prompt, "Blue.", ended) for ended in (True, False))
    reward = Reward(model, policy, frame.rest, 1.5, batch_size=2)
    values = reward([policy.prompt_ids(prompt)] * 2, [finished, cut_off])
    raw = own_format(foreign / "reward", dialogue, "Blue.")
    assert values[0].item() == pytest.approx((raw - model.score.mean) / model.score.std, abs=1e-3)
    assert reward.penalty == 1.5 and values[1] != values[0]


@pytest.mark.parametrize("recipe", ["ppo", "grpo", "dpo"])
def test_recipes_take_a_reward_model_that_is_not_ours(recipe, foreign, run, world, tmp_path):
    path = settings(
        tmp_path,
        recipe,
        world,
        **{"model_name_or_path": str(foreign / "policy"), "reward_model_path": str(foreign / "reward")},
        **{"max_prompt_tokens": 96, **({"kl_strength": 0.3, "beta": None} if recipe == "dpo" else {})},
    )
    code, _, error = run(recipe, "--config", path)
    assert code == 0, error
    assert "reward_std" not in json.loads((foreign / "reward/config.json").read_text())
    assert lineage(str(tmp_path / recipe)) == [(str(tmp_path / recipe), "main")]


@pytest.mark.parametrize("recipe", ["ppo", "grpo"])
def test_a_reward_model_that_reads_otherwise_than_the_policy_is_refused(recipe, foreign, run, world, tmp_path):
    path = settings(
        tmp_path, recipe, world, model_name_or_path=str(world / "model"), reward_model_path=str(foreign / "reward")
    )
    code, _, error = run(recipe, "--config", path)
    assert code == 2 and "has another vocabulary than the policy" in error


CODE = """
from torch import nn
from transformers import (
    LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel
)

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

class OwnForSequenceClassification(LlamaForSequenceClassification):
    config_class = OwnConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels, self.model = config.num_labels, LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""


@pytest.fixture
def own_code(world, tmp_path):
    """A model that comes with its code, as on the hub."""
    folder = shutil.copytree(world / "model", tmp_path / "own")
    (folder / "modeling_own.py").write_text(CODE)
    kinds = {"AutoConfig": "OwnConfig"}
    kinds |= {f"AutoModelFor{kind}": f"OwnFor{kind}" for kind in ("CausalLM", "SequenceClassification")}
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {auto: f"modeling_own.{name}" for auto, name in kinds.items()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_that_comes_with_a_model_runs_where_it_is_trusted(own_code, run, world, tmp_path):
    for recipe in ("sft", "reward", "ppo", "grpo", "dpo"):
        path = settings(tmp_path, recipe, world, **({"model_name_or_path": str(own_code)} if recipe == "sft" else {}))
        code, _, error = run(recipe, "--config", path, "--trust_remote_code", "true")
        assert code == 0, error
    profile = settings(tmp_path, "eval", world)
    for step in ("samples", "score"):
        code, _, error = run(step, "--config", profile, "--trust_remote_code", "true")
        assert code == 0, error


def test_code_that_comes_with_a_model_is_not_run_unasked(own_code, run, world, tmp_path):
    path = settings(tmp_path, "sft", world, model_name_or_path=str(own_code))
    code, _, error = run("sft", "--config", path)
    assert code == 2 and "trust_remote_code" in error.splitlines()[-1]


def test_a_reward_model_without_its_head_is_refused(foreign, run, world, tmp_path):
    """Its scores would be random, and a scale of them would be measured."""
    folder = shutil.copytree(foreign / "reward", tmp_path / "headless")
    weights = {name: part for name, part in load_file(folder / "model.safetensors").items() if name != "score.weight"}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    code, _, error = run("reward-model", "--config", settings(tmp_path, "eval", world, reward_model=str(folder)))
    assert code == 2 and "lacks the weights score.weight" in error.splitlines()[-1]


def test_an_adapter_of_another_model_is_refused(adapter, run, world, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    parts = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name.replace("layers", "blocks"): part for name, part in parts.items()}, folder / "adapter_model.safetensors"
    )
    code, _, error = run("sft", "--config", settings(tmp_path, "sft", world, model_name_or_path=str(folder)))
    assert code == 2 and "does not fit" in error.splitlines()[-1]


@pytest.mark.parametrize("std", [float("nan"), 0.0])
def test_a_recorded_scale_that_is_none_is_refused(std, foreign, run, world, tmp_path):
    folder = shutil.copytree(foreign / "reward", tmp_path / "reward")
    config = json.loads((folder / "config.json").read_text()) | {"reward_mean": 0.0, "reward_std": std}
    (folder / "config.json").write_text(json.dumps(config))
    changes = {"model_name_or_path": str(foreign / "policy"), "kl_strength": 0.3, "beta": None, "max_prompt_tokens": 96}
    path = settings(tmp_path, "dpo", world, **changes, reward_model_path=str(folder))
    code, _, error = run("dpo", "--config", path)
    assert code == 2 and "cannot be a reward" in error.splitlines()[-1]


def test_an_adapter_is_put_on_the_revision_that_it_was_trained_on(adapter, monkeypatch):
    """As its config says, and not on what the hub has now."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"revision": "old"}))
    assert lineage(str(adapter), "new") == [(str(adapter), "new"), (base, "old")]
    asked, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda name, revision, **options: asked.append(revision) or load(name, **options),
    )
    load_policy(str(adapter), load_frame(str(adapter)).tokenizer, "float32")
    assert asked == ["old"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
