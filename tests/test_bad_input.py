"""What a library says of a model, a file or an option is one line with a remedy; a defect keeps its traceback."""

import json
import re
import shutil
import time

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

from tests.conftest import RECIPES, settings


@pytest.fixture(scope="module")
def parts(world, tmp_path_factory):
    """What every case has a copy of: `base` and `chat` to train, a sound `reward` model, and `data`."""
    folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(world / "model", folder / "base")
    shutil.copytree(world / "gpt2", folder / "chat")
    shutil.copytree(world / "model", folder / "reward")
    make_reward_model(folder)
    return folder


def make_reward_model(folder, labels=1, base="base"):
    model = AutoModelForSequenceClassification.from_pretrained(folder / base, num_labels=labels)
    model.config.reward_mean, model.config.reward_std = 0.0, 1.0
    model.save_pretrained(folder / "reward")


def edit(name, **changes):
    """A preparation: change values of a JSON file; None takes one out."""

    def prepare(folder):
        path = folder / name
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return prepare


def write(name, text):
    def prepare(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return prepare


def remove(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000])


def tokenizer_with(base, **changes):
    def prepare(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder / base)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(folder / base)

    return prepare


def adapter(base=None, **changes):
    def prepare(folder):
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
        config |= {"base_model_name_or_path": base or str(folder / "base")} | changes
        write("adapter/adapter_config.json", json.dumps(config))(folder)

    return prepare


def dialogues(form):
    pairs = [{"chosen": form.format(i) + " Yes.", "rejected": form.format(i) + " No."} for i in range(100)]
    text = "\n".join(map(json.dumps, pairs))
    return together(write("rows/train.jsonl", text), write("rows/test.jsonl", text))


def together(*parts):
    def prepare(folder):
        for part in parts:
            part(folder)

    return prepare


def copy(source, target):
    return lambda folder: shutil.copy(folder / source, folder / target)


def new_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
    tokenizer.add_tokens(["bananas"])
    tokenizer.save_pretrained(folder / "reward")


def nested(folder):
    text = json.loads((folder / "base/config.json").read_text()) | {"model_type": "gemma3_text"}
    text["max_position_embeddings"] = 64
    (folder / "base/config.json").write_text(
        json.dumps({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    )


def half_weights(folder):
    weights = load_file(folder / "base/model.safetensors")
    kept = {name: part for name, part in weights.items() if "layers.1" not in name}
    save_file(kept, folder / "base/model.safetensors", metadata={"format": "pt"})


INDEX = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
CODEGEN = {"model_type": "codegen", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 300}
CUSTOM = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd", "AutoModelForCausalLM": "odd.OddLM"}}
ONLY_USERS_BEGIN = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
)
FEW = {"sft": 0.3, "reward": 0.4, "policy": 0.2, "gold": 0.09, "validation": 0.01}
LORA = {"use_peft": True}
ADAPTER = {"model_name_or_path": "{folder}/adapter"}
CHAT = {"model_name_or_path": "{folder}/chat"}
ROWS = {"dataset": "{folder}/rows"}
SAMPLES = {"policies": ["sft={folder}/base"]}

# Models and their files: recipe, changes of its config, preparation, what is said
MODELS = {
    "config is no JSON": ("sft", {}, write("base/config.json", "{"), "config.json' is not a valid JSON"),
    "no model type": ("sft", {}, edit("base/config.json", model_type=None), "Should have a `model_type` key"),
    "unknown model type": ("sft", {}, edit("base/config.json", model_type="nope"), "model type `nope`"),
    "no such activation": ("sft", {}, edit("base/config.json", hidden_act="nope"), "'nope' .transformers.;"),
    "heads do not divide": ("sft", {}, edit("base/config.json", num_attention_heads=3), "not a multiple of the number"),
    "encoder and decoder": ("sft", {}, edit("base/config.json", model_type="t5"), "AutoModelForCausalLM"),
    "no classifier": ("sft", {}, write("base/config.json", json.dumps(CODEGEN)), "no sequence classifier for codegen"),
    "custom code": ("sft", {}, edit("base/config.json", **CUSTOM), "trust_remote_code=True"),
    "custom code missing": ("sft", {"trust_remote_code": True}, edit("base/config.json", **CUSTOM), "named odd.py"),
    "nested context": ("dpo", {}, nested, "do not fit the context of 64 tokens"),
    "weights cut off": ("sft", {}, cut("base/model.safetensors"), "model.safetensors cannot be read .* fetch it again"),
    "weights are garbage": ("dpo", {}, write("base/model.safetensors", "version https://git-lfs"), "fetch it again"),
    "no weights": ("sft", {}, remove("base/model.safetensors"), "base holds no weights"),
    "shard missing": ("sft", {}, write("base/model.safetensors.index.json", json.dumps(INDEX)), "model-2.safetensors"),
    "half the weights": ("dpo", {}, half_weights, "lacks the weights model.layers.1"),
    "other shapes": ("sft", {}, edit("base/config.json", hidden_size=32), "ignore_mismatched_sizes"),
    "weights cut off, eval": ("samples", SAMPLES, cut("base/model.safetensors"), "model.safetensors cannot be read"),
    "reward config is no JSON": ("ppo", {}, write("reward/config.json", "{"), "config.json' is not a valid JSON"),
    "reward weights cut off": ("ppo", {}, cut("reward/model.safetensors"), "reward/model.safetensors cannot be read"),
    "reward without weights": ("grpo", {}, remove("reward/model.safetensors"), "reward holds no weights"),
    "reward of two labels": ("ppo", {}, lambda folder: make_reward_model(folder, labels=2), "gives 2 labels"),
    "policy as reward": ("grpo", {"reward_model_path": "{folder}/base"}, None, "holds no reward model"),
    "reward as policy": ("dpo", {"model_name_or_path": "{folder}/reward"}, None, "holds a reward model, which cannot"),
    "other frame, ppo": ("ppo", CHAT, None, "has another frame than the policy"),
    "other vocabulary, grpo": ("grpo", {}, new_token, "has another vocabulary than the policy"),
    "base has moved": ("dpo", ADAPTER, adapter("/nowhere/at-all"), "was trained on /nowhere/at-all"),
    "adapter is no JSON": (
        "dpo",
        ADAPTER,
        write("adapter/adapter_config.json", "{"),
        "adapter_config.json is not valid",
    ),
    "adapter without weights": ("dpo", ADAPTER, adapter(), "adapter holds no weights"),
    "adapter of another kind": (
        "dpo",
        ADAPTER,
        together(adapter(peft_type="NEW"), copy("base/model.safetensors", "adapter/adapter_model.safetensors")),
        "'NEW' .peft.;",
    ),
    "adapter quantized": (
        "dpo",
        ADAPTER | LORA | {"load_in_4bit": True, "dtype": "bfloat16"},
        together(adapter(), copy("base/model.safetensors", "adapter/adapter_model.safetensors")),
        "cannot be merged into quantized weights",
    ),
}
# Tokenizers, templates and data
TEXTS = {
    "tokenizer is no JSON": ("sft", {}, write("base/tokenizer.json", "{"), "tokenizer of .*base cannot be loaded"),
    "no tokenizer": ("sft", {}, remove("base/tokenizer.json"), "tokenizer of .*base cannot be loaded"),
    "no eos": (
        "sft",
        {},
        together(tokenizer_with("base", eos_token=None), edit("base/config.json", eos_token_id=None)),
        "set eos_token to one of its tokens",
    ),
    "eos not in the vocabulary": ("sft", {"eos_token": "<|nope|>"}, None, "is not in the vocabulary"),
    **{
        f"pad is eos, {recipe}": (recipe, {"pad_token": "<|endoftext|>"}, None, "no pad token besides eos")
        for recipe in ("sft", "reward", "dpo")
    },
    "template does not parse": ("sft", CHAT, tokenizer_with("chat", chat_template="{% if %}"), "template is broken"),
    "template drops replies": ("sft", CHAT, tokenizer_with("chat", chat_template="Hi"), "does not show where a reply"),
    "no template file": ("sft", {"chat_template_path": "{folder}/none.jinja"}, None, "none.jinja cannot be read"),
    "no template folder": ("sft", {"chat_template_path": "{folder}/none"}, None, "none does not exist"),
    "no template in it": ("sft", {"chat_template_path": "{folder}/base"}, None, "has no chat template"),
    "half a character": ("sft", ROWS, dialogues("\n\nHuman: {}\ud83d?\n\nAssistant:"), "100 half a character"),
    "assistant begins": (
        "sft",
        ROWS | CHAT,
        together(
            dialogues("\n\nAssistant: Hi.\n\nHuman: {}?\n\nAssistant:"),
            tokenizer_with("chat", chat_template=ONLY_USERS_BEGIN),
        ),
        "100 the assistant begins",
    ),
    "few validation rows": ("reward", {"splits": FEW}, None, "needs 16 pairs of the validation split"),
    "less than a GRPO batch": ("grpo", {"per_device_train_batch_size": 4000}, None, "at least one batch of 1000"),
}
OPTIONS = {
    "no wandb": ("sft", {"report_to": "wandb"}, None, "wandb to be installed"),
    "no such tracker": ("ppo", {"report_to": "wandbb"}, None, "wandbb is not supported"),
    "no galore": ("sft", {"optim": "galore_adamw"}, None, "install `galore_torch`"),
    "no lomo, grpo": ("grpo", {"optim": "lomo"}, None, "install `lomo_optim`"),
    "no such optimizer": ("sft", {"optim": "adamw_nope"}, None, "invalid choice: 'adamw_nope'"),
    "optimizer's options": ("sft", {"optim": "rmsprop", "optim_args": "nonsense"}, None, "not enough values"),
    "scheduler's options": ("sft", {"lr_scheduler_type": "cosine_with_min_lr"}, None, "min_lr_rate should be set"),
    "learning rate": ("sft", {"learning_rate": -1}, None, "Invalid learning rate"),
    "no liger": ("reward", {"use_liger_kernel": True}, None, "pip install liger-kernel"),
    "no flash attention": ("sft", {"attn_implementation": "flash_attention_2"}, None, "FlashAttention2"),
    "no such attention": ("ppo", {"attn_implementation": "nope"}, None, 'attn_implementation="nope"'),
    "no such dtype": ("sft", {"dtype": "float33"}, None, "invalid choice: 'float33'"),
    "no such dtype, eval": ("samples", SAMPLES | {"dtype": "float33"}, None, "invalid choice: 'float33'"),
    "no such loss": ("sft", {"loss_type": "nope"}, None, "Invalid `loss_type` nope"),
    "the hub": ("sft", {"push_to_hub": True}, None, "upload the finished folder: hf upload NAME FOLDER"),
    "LoRA's whole modules": ("dpo", LORA | {"lora_modules_to_save": ["head"]}, None, "base has no head; leave it out"),
    "LoRA's parameters": ("ppo", LORA | {"lora_target_parameters": ["w"]}, None, "lora_target_parameters: .* has no w"),
    **{
        f"LoRA's layers, {recipe}": (recipe, LORA | {"lora_target_modules": ["c_attn"]}, None, "(?i)target.modules")
        for recipe in RECIPES
    },
    "revision of a folder": ("sft", {"model_revision": "v9"}, None, "model_revision: v9 has no place here"),
    "evaluation while training": ("ppo", {"eval_strategy": "steps"}, None, "eval_strategy has no place here"),
    "loss on prompts": ("sft", {"completion_only_loss": False}, None, "completion_only_loss has no place here"),
    "packing": ("sft", {"packing": True}, None, "packing has no place here"),
    "stop token": ("ppo", {"stop_token_id": 5}, None, "stop_token_id has no place here"),
    "no batch": ("sft", {"per_device_train_batch_size": 0}, None, "must be at least 1"),
    "no temperature": ("grpo", {"temperature": 0}, None, "temperature must be above 0"),
    "no steps": ("sft", {"max_steps": -1, "num_train_epochs": 0}, None, "nothing was trained"),
    "nowhere to write": ("sft", {"output_dir": "/proc/runs/sft"}, None, "cannot write to /proc/runs/sft"),
}
CASES = MODELS | TEXTS | OPTIONS


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, run, world, parts, tmp_path):
    recipe, changes, prepare, message = CASES[case]
    shutil.copytree(parts, tmp_path, dirs_exist_ok=True)
    if prepare:
        prepare(tmp_path)
    start = {} if recipe == "samples" else {"model_name_or_path": "{folder}/base"}
    changes = json.loads(json.dumps(start | changes).replace("{folder}", str(tmp_path)))
    config = settings(tmp_path, "eval" if recipe == "samples" else recipe, world, **changes)
    before, begun = sorted(tmp_path.rglob("*")), time.monotonic()
    code, _, err = run(recipe, "--config", config)
    assert code == 2
    assert time.monotonic() - begun < 20
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.rstrip().endswith(lines[0]) and "Traceback" not in err
    assert re.search(message, lines[0]), lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_defect_of_ours_keeps_its_traceback(run, world, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_trl.tokens.Frame.rows", lambda self, rows: rows[0]["nothing"])
    with pytest.raises(KeyError, match="nothing"):
        run("sft", "--config", settings(tmp_path, "sft", world, max_prompt_tokens=61))  # tokenized by no other test


def test_so_does_an_error_in_training_and_what_was_trained_is_left(run, world, tmp_path, monkeypatch):
    """Not even an error before the training goes on takes that back."""
    taken, step = [], Trainer.training_step

    def fail(*args, **options):
        taken.append(1)
        return step(*args, **options) if len(taken) < 3 else Trainer.nothing

    with monkeypatch.context() as patch, pytest.raises(AttributeError) as caught:
        patch.setattr(Trainer, "training_step", fail)
        run("sft", "--config", settings(tmp_path, "sft", world, save_steps=1, attn_implementation="eager"))
    assert caught.value.in_training
    config = settings(tmp_path, "sft", world, save_steps=1, attn_implementation="nope")
    assert run("sft", "--config", config)[0] == 2
    assert (tmp_path / "sft.partial/checkpoint-2/sealed.json").exists()


def test_the_traceback_of_a_library_is_there_when_asked_for(run, world, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_TRL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="nope"):
        run("sft", "--config", settings(tmp_path, "sft", world, attn_implementation="nope"))
