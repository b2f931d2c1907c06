"""Every option is honoured or refused."""

import functools
import random
import shutil
from dataclasses import fields
from typing import Literal, get_args, get_origin

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rlhf_trl.cli import parse
from rlhf_trl.config import RECIPES
from rlhf_trl.errors import UserError
from rlhf_trl.files import read_jsonl
from rlhf_trl.options import REFUSED
from rlhf_trl.outline import outline
from tests.conftest import settings

outline = functools.cache(outline)
# Options that somebody has looked at, in the sources of TRL 1.12 and transformers 5.23: they work as they stand
EVERYWHERE = """
    activation_checkpointing adam_beta1 adam_beta2 adam_epsilon attn_implementation ddp_backend ddp_timeout
    disable_tqdm dtype gradient_checkpointing learning_rate logging_first_step lr_scheduler_kwargs max_grad_norm
    model_name_or_path num_train_epochs output_dir report_to run_name save_steps save_total_limit seed tf32 use_cpu
    use_peft weight_decay
"""
NOT_IN_PPO = """
    activation_checkpointing_kwargs bf16 dataloader_in_order dataloader_multiprocessing_context
    dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor
    ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph debug deepspeed fsdp_config
    full_determinism gradient_checkpointing_kwargs log_level log_level_replica log_on_each_node
    logging_nan_inf_filter logging_steps logging_strategy max_steps optim pad_to_multiple_of torch_compile
    torch_compile_backend torch_compile_mode torch_empty_cache_steps trust_remote_code
"""
OFFLINE = """
    accelerator_config dataloader_drop_last eval_strategy include_num_input_tokens_seen lr_scheduler_type
    neftune_noise_alpha pad_token
"""
CANNOT_BE_SAID = {"liger_kernel_config"}  # the parser takes no dictionary of truth values, and says so
WORK = {
    "sft": EVERYWHERE
    + NOT_IN_PPO
    + OFFLINE
    + "average_tokens_across_devices chat_template_path eos_token fsdp loss_type router_aux_loss_coef",
    "reward": EVERYWHERE
    + NOT_IN_PPO
    + OFFLINE
    + "center_rewards_coefficient chat_template_path disable_dropout eos_token fsdp",
    "ppo": EVERYWHERE
    + """
    cliprange cliprange_value gamma kl_coef kl_estimator lam local_rollout_forward_batch_size missing_eos_penalty
    num_mini_batches num_ppo_epochs response_length reward_model_path total_episodes vf_coef whiten_rewards
""",
    "grpo": EVERYWHERE
    + NOT_IN_PPO
    + """
    beta cache_implementation cast_lm_head_to_fp32 delta disable_dropout ds3_gather_for_generation entropy_coef
    epsilon epsilon_high fsdp generation_batch_size log_completions mask_truncated_completions max_completion_length
    num_generations num_iterations off_policy_mask_threshold reward_weights router_aux_loss_coef steps_per_generation
    sync_ref_model top_entropy_quantile use_adaptive_entropy use_bias_correction_kl
""",
    "dpo": EVERYWHERE
    + NOT_IN_PPO
    + OFFLINE
    + """
    beta disable_dropout ld_alpha loss_weights precompute_ref_batch_size precompute_ref_log_probs router_aux_loss_coef
    use_weighting
""",
}


def options(recipe):
    """Of TRL's classes, by name; the others are ours."""
    return {
        part.name: part for kind in RECIPES[recipe].configs if isinstance(kind, str) for part in fields(outline(kind))
    }


def table(recipe):
    """Rows that concern a recipe: an option, and why it is refused."""
    for recipes, names, message, _ in REFUSED:
        yield from ((name, message.partition(";")[0]) for name in names.split() if recipe in recipes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_somebody_has_looked_at_every_option(recipe):
    """Where this fails, look in TRL's or transformers' sources what a new option does in our recipes: if nothing, or
    harm, it needs a row in `options.py`; else its name goes into the list above."""
    refused = {name for name, *_ in table(recipe)}
    assert not refused & set(WORK[recipe].split())
    assert options(recipe).keys() - refused - CANNOT_BE_SAID == set(WORK[recipe].split())


def test_the_table_names_no_option_that_is_gone():
    for recipes, names, *_ in REFUSED:
        for name in names.split():
            assert any(name in options(recipe) for recipe in recipes), name


# Values that are refused, of a row or an option with which not any will do
REFUSED_VALUES = {
    "trainers drop the lengths that it needs": "batch_rebalance",
    "prompts are shuffled by seed": "sequential",
    "there is no batch of that size": 0,
    "the last weights are published": "best",
    "PPO counts no epochs": "epoch",
    "TRL knows no such value": "nope",
    "stop_token": None,
    "lr_scheduler_type": "greedy",
    "temperature": 0,
    "generation_kwargs": {"top_p": 0.9},
    "optim": "schedule_free_adamw",
}
# What a row needs beside its option
BESIDE = {
    "trains the adapters": {"use_peft": True},
    "8 bits": {"use_peft": True, "dtype": "bfloat16"},
    "dropout": {"use_peft": True, "disable_dropout": True},
    "no such value": {"use_vllm": True},
    "a folder": {"model_name_or_path": "."},
    "rate is constant": {"lr_scheduler_type": "constant"},
}


def any_value(option):
    """Of the option's type, but not its default."""
    choices = option.metadata.get("choices") or (get_origin(option.type) is Literal and get_args(option.type))
    if choices:
        return next(choice for choice in choices if choice != option.default)
    values = {"dict": {"x": 1}, "list": ["x"], "bool": option.default is not True, "float": 0.25, "int": 3, "str": "x"}
    return next(value for kind, value in values.items() if kind in str(option.type))


@pytest.mark.parametrize(
    ("recipe", "name", "why"),
    [(recipe, *row) for recipe in RECIPES for row in table(recipe) if row[0] in options(recipe)],
)
def test_what_is_refused_says_why_in_one_line(recipe, name, why, tmp_path, monkeypatch):
    missing = "is not installed" in why
    monkeypatch.setattr("rlhf_trl.options.find_spec", lambda package: None if missing else package)
    option = options(recipe)[name]
    (value, *_) = [REFUSED_VALUES[key] for key in (why, name) if key in REFUSED_VALUES] or [any_value(option)]
    assert value != option.default or name == "stop_token"
    config = {"model_name_or_path": "m", "output_dir": str(tmp_path / "o"), name: value}
    config |= {"reward_model_path": "r"} if recipe in ("ppo", "grpo") else {}
    for reason, beside in BESIDE.items():
        config |= {key: setting for key, setting in beside.items() if reason in why and key in options(recipe)}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError) as caught:
        parse(recipe, argv=["--config", str(path)])
    message = str(caught.value)
    assert message.startswith(name) and (missing or " has no place here: " in message) and "; " in message
    assert why in message and "\n" not in message and len(message) < 300


# What can be tried on a CPU, on tiny models, in a second or two: options beside which the others stay as in `settings`
TRIED = {
    "sft": {
        "adam_beta1": 0.5,
        "adam_epsilon": 0.1,
        "bf16": True,
        "dataloader_drop_last": True,
        "dtype": "bfloat16",
        "eval_strategy": "epoch",
        "include_num_input_tokens_seen": True,
        "learning_rate": 1e-3,
        "logging_first_step": True,
        "logging_steps": 3,
        "logging_strategy": "epoch",
        "loss_type": "dft",
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.01,
        "max_steps": 4,
        "neftune_noise_alpha": 5.0,
        "optim": "adafactor",
        "save_steps": 2,
        "seed": 1,
        "use_peft": True,
        "weight_decay": 0.5,
    },
    "reward": {"center_rewards_coefficient": 0.1, "lr_scheduler_kwargs": {"num_cycles": 3}},
    "ppo": {
        "cliprange": 1e-3,
        "cliprange_value": 1e-3,
        "kl_coef": 1.0,
        "lam": 0.5,
        "missing_eos_penalty": 5.0,
        "num_mini_batches": 2,
        "num_ppo_epochs": 1,
        "response_length": 4,
        "total_episodes": 16,
        "vf_coef": 1.0,
    },
    "grpo": {
        "beta": 1.0,
        "entropy_coef": 0.5,
        "log_completions": True,
        "mask_truncated_completions": True,
        "max_completion_length": 4,
        "num_iterations": 2,
        "steps_per_generation": 2,
        "top_entropy_quantile": 0.5,
    },
    "dpo": {"beta": 1.0, "ld_alpha": 0.5, "save_total_limit": 1, "use_weighting": True},
}
# Ten of them, drawn by lot
DRAWN = [
    ("ppo", "cliprange_value"),
    ("ppo", "lam"),
    ("sft", "bf16"),
    ("sft", "optim"),
    ("ppo", "vf_coef"),
    ("ppo", "total_episodes"),
    ("ppo", "kl_coef"),
    ("sft", "use_peft"),
    ("ppo", "response_length"),
    ("reward", "lr_scheduler_kwargs"),
]


def test_the_lot_has_drawn_these():
    everything = [(recipe, name) for recipe, tried in TRIED.items() for name in tried]
    assert {name for _, name in everything} <= set(" ".join(WORK.values()).split())
    assert random.Random(0).sample(everything, 10) == DRAWN


@pytest.fixture(scope="module")
def reward_model(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "reward"
    shutil.copytree(world / "model", folder)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.reward_mean, model.config.reward_std = 0.0, 1.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain():
    """Outcomes of runs with nothing changed, by recipe."""
    return {}


def outcome(recipe, run, world, reward_model, folder, **changes):
    """Weights, and what was logged of losses and rewards."""
    changes = {"model_name_or_path": str(world / "model"), "max_rows": 20} | changes
    if recipe == "ppo":
        changes |= {"reward_model_path": str(reward_model), "per_device_train_batch_size": 2}
    code, _, error = run(recipe, "--config", settings(folder, recipe, world, **changes))
    assert code == 0, error
    logged = [
        {name: value for name, value in row.items() if "loss" in name or "score" in name}
        for row in read_jsonl(folder / recipe / "metrics.jsonl")
    ]
    weights = load_file(folder / recipe / "model.safetensors")
    return logged, {name: tensor.float().sum().item() for name, tensor in weights.items()}


@pytest.mark.parametrize(("recipe", "name"), DRAWN)
def test_what_is_not_refused_has_an_effect(recipe, name, run, world, reward_model, tmp_path, plain):
    if recipe not in plain:
        plain[recipe] = outcome(recipe, run, world, reward_model, tmp_path / "plain")
    changes = {name: TRIED[recipe][name]} | ({"kl_strength": None} if name == "kl_coef" else {})
    changed = outcome(recipe, run, world, reward_model, tmp_path / "changed", **changes)
    assert changed[0] != plain[recipe][0] and changed[1] != plain[recipe][1]
