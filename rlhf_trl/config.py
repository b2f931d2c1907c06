"""Strict configs: YAML values and command-line options go through one parser and are checked alike."""

import argparse
import difflib
import itertools
import json
import os
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from rlhf_trl import kl
from rlhf_trl.errors import UserError, check_folder, check_writable
from rlhf_trl.outline import load, outline

# Where we differ from TRL's own defaults: less padding, and no second model for DPO's reference
DEFAULTS = {"train_sampling_strategy": "group_by_length", "precompute_ref_log_probs": True, "stop_token": "eos"}

# Options that name folders, or something on the hub
FOLDERS = {"dataset": "dataset", "model_name_or_path": "model", "reward_model_path": "reward model"}
# Options that would be accepted and do nothing or harm, and what to do instead
ALWAYS = {
    "eval_strategy": "leave it out; make score and make eval-reward evaluate on held-out data",
    "resume_from_checkpoint": "run the same command again, and it goes on from its last checkpoint",
    "save_only_model": "leave it out: a killed run could not go on, and a finished one keeps only models anyway",
}
# Options that TRL has no way to combine with one of our defaults, that default, and what to set it to
CLASHES = {
    "SFTConfig": [("use_liger_kernel", "train_sampling_strategy", "random")],
    "DPOConfig": [(name, "precompute_ref_log_probs", "false") for name in ("use_liger_kernel", "sync_ref_model")],
}
ONLINE = ("PPOConfig", "GRPOConfig")  # whose order of prompts TRL does not take from `train_sampling_strategy`
LENGTHS = ALWAYS | {"max_length": "set max_prompt_tokens and max_completion_tokens"}
IGNORED = {
    "PPOConfig": ALWAYS
    | {
        "max_steps": "set total_episodes",
        "bf16": "set dtype: bfloat16",
        "fp16": "set dtype: float16",
        "deepspeed": "set LAUNCH=ddp",
        "fsdp": "set LAUNCH=ddp",
        "stop_token": "leave it out; a reply ends where the chat template says, or set eos_token when SFT trains",
        "stop_token_id": "a reply ends where the chat template says, or set eos_token when SFT trains",
    },
    "GRPOConfig": ALWAYS
    | {"chat_template_kwargs": "the chat template is read with its defaults, or set chat_template_path for SFT"},
    "SFTConfig": LENGTHS
    | {
        "completion_only_loss": "leave it out; the loss is on completions only",
        "assistant_only_loss": "leave it out; the loss is on completions only",
        "packing": "leave it out; batches are of like length, which saves as much",
        "padding_free": "leave it out; batches are of like length, which saves as much",
    },
    "RewardConfig": LENGTHS,
    "DPOConfig": LENGTHS,
}

# Shares of the train split by use, disjoint by prompt: DPO trains on the reward pairs, so that all methods see the same
# preferences; policy holds PPO's and GRPO's prompts; gold at least as many pairs as reward, for a second reward model
# to judge by; validation what settings are chosen on and rewards scaled by.
SPLITS = {"sft": 0.25, "reward": 0.25, "policy": 0.13, "gold": 0.27, "validation": 0.10}

COLUMNS = ("prompt", "chosen", "rejected")  # of preference data


@dataclass
class DataConfig:
    """Which preference pairs to use, and how much of them."""

    dataset: str = field(
        default="Anthropic/hh-rlhf",
        metadata={
            "help": "Hub name, folder or file: HH-RLHF's dialogues, or TRL's preference formats, as jsonl, json, csv "
            "(these may be gzipped) or parquet."
        },
    )
    data_dir: list[str] | None = field(
        default=None, metadata={"help": "Subsets (folders) to read, e.g. harmless-base. All by default."}
    )
    split: str | None = field(
        default=None, metadata={"help": "The split to train on, e.g. train_prefs, if it is not train."}
    )
    test_split: str | None = field(
        default=None,
        metadata={
            "help": "The split to evaluate on, if it is not test (test_prefs beside train_prefs) or validation. "
            "Without any, a tenth of the prompts is kept for it."
        },
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Other names of columns, as prompt=question chosen=better rejected=worse."},
    )
    max_prompt_tokens: int = field(
        default=512, metadata={"help": "Rows with a longer prompt are dropped; prompts are never cut."}
    )
    max_completion_tokens: int = field(
        default=256, metadata={"help": "Pairs with a longer reply are dropped; replies are never cut."}
    )
    max_rows: int | None = field(
        default=None, metadata={"help": "Use only this many rows (after a seeded shuffle). All by default."}
    )
    splits: dict | str | None = field(
        default=None,
        metadata={
            "help": "Shares of the train split, the same in all configs of a profile; by default "
            + ", ".join(f"{name} {share}" for name, share in SPLITS.items())
            + ". A profile with a true rule needs no gold."
        },
    )

    def __post_init__(self) -> None:
        self.splits = _shares(self.splits)
        for name, equals, column in (entry.partition("=") for entry in self.columns or ()):
            if name not in COLUMNS or not (equals and column):
                raise UserError(
                    f"columns: {name}{equals}{column} names no column; write {'=NAME, '.join(COLUMNS)}=NAME"
                )
        for name in ("max_prompt_tokens", "max_completion_tokens", "max_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1")


def _shares(given: dict | str | None) -> dict[str, float]:
    """The share of every split, from what a config or a command line says.

    Raises:
        UserError: no shares, or an unknown split, or what does not add up to 1, or no room for what is always needed.
    """
    try:
        given = SPLITS if given is None else json.loads(given) if isinstance(given, str) else given
        shares = {name: float(given.get(name, 0)) for name in SPLITS}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"splits: {given} holds no shares; write {{{', '.join(f'{n}: 0.2' for n in SPLITS)}}}"
        ) from error
    if unknown := set(given) - set(SPLITS):
        raise UserError(f"splits: there is no split {min(unknown)}; they are {', '.join(SPLITS)}")
    if empty := [name for name, share in shares.items() if not (share > 0 or (share == 0 and name == "gold"))]:
        raise UserError(f"splits: {empty[0]} needs a share above 0")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"splits: the shares add up to {sum(shares.values()):g}, not to 1")
    return shares


@dataclass
class RunConfig:
    """How a training run is started."""

    fresh: bool = field(
        default=False,
        metadata={"help": "Throw away what a killed run left, instead of going on from its last complete checkpoint."},
    )


@dataclass
class PPORunConfig(RunConfig):
    """The same, with what PPO's own config lacks."""

    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})


@dataclass
class RewardModelConfig:
    """The reward that GRPO learns from (PPO's own config has the same fields)."""

    reward_model_path: str = field(metadata={"help": "Run folder of the reward recipe."})
    missing_eos_penalty: float = field(
        default=1.0, metadata={"help": "Subtracted from the score of a completion that did not end."}
    )


# What each recipe's options are. TRL's classes are named, not imported: that takes ten seconds.
MODEL = "trl.ModelConfig"
RECIPES: dict[str, tuple[type | str, ...]] = {
    "sft": (DataConfig, MODEL, RunConfig, "trl.SFTConfig"),
    "reward": (DataConfig, MODEL, RunConfig, "trl.RewardConfig"),
    "ppo": (DataConfig, MODEL, kl.KLConfig, PPORunConfig, "trl.experimental.ppo.PPOConfig"),
    "grpo": (DataConfig, MODEL, RewardModelConfig, kl.KLConfig, RunConfig, "trl.GRPOConfig"),
    "dpo": (DataConfig, MODEL, kl.DPOKLConfig, RunConfig, "trl.DPOConfig"),
}


class _Parser(TrlParser):
    def error(self, message: str) -> None:
        raise UserError(message)


def parse(description: str | None, *classes: type | str, argv: list[str] | None = None) -> tuple[Any, ...]:
    """Fill each dataclass from `--config FILE.yaml` and the options after it, which override the file.

    A class may be given by name; mistakes in its options, and folders that are not there, are then found before it is
    imported. Unlike TRL's own parser this checks the types of YAML values too, names the closest known key for an
    unknown one, and falls back to the CPU and 32 bits where there is no accelerator (or no bfloat16).

    Raises:
        UserError: missing or broken file, unknown key, wrong type, missing folder, or settings that contradict each
            other.
    """
    argv = sys.argv[1:] if argv is None else argv
    parsed = _fill(description, [outline(part) if isinstance(part, str) else part for part in classes], argv)
    if any(isinstance(part, str) for part in classes):
        for part, (option, kind) in itertools.product(parsed, FOLDERS.items()):
            if getattr(part, option, None):
                check_folder(getattr(part, option), kind)
        parsed = _fill(description, [load(part) if isinstance(part, str) else part for part in classes], argv)
    return parsed


def check_launch() -> None:
    """Refuse launchers under which TRL's PPO cannot train or save.

    Raises:
        UserError: DeepSpeed (ZeRO) or FSDP.
    """
    for name in ("DeepSpeed", "FSDP"):
        if _launched_by(name):
            raise UserError(f"PPO does not work with {name}; launch it with DDP (LAUNCH=ddp) or on one GPU")


def _launched_by(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name.upper()}") == "true"  # as accelerate's launcher sets it


def _fill(description: str | None, classes: list[type], argv: list[str]) -> tuple[Any, ...]:
    parser = _Parser(
        classes,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    options = {action.dest: action for action in parser._actions}
    parser.set_defaults(**{name: value for name, value in DEFAULTS.items() if name in options})
    if _launched_by("FSDP") and "precompute_ref_log_probs" in options:
        parser.set_defaults(precompute_ref_log_probs=False)  # TRL would ask a reference that is not on its GPU yet
    ppo = any(part.__name__ == "PPOConfig" for part in classes)
    if "torch" in sys.modules and "bf16" in options:
        import torch

        bf16 = not ppo and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        parser.set_defaults(use_cpu=not torch.accelerator.is_available(), bf16=bf16)

    parser_defaults = {name: action.default for name, action in options.items()}
    if "kl_strength" in options:  # to tell what is given from TRL's default
        parser.set_defaults(**{name: None for name in kl.OPTIONS if name in options})
    path = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    path.add_argument("--config")
    config = path.parse_known_args(argv)[0].config
    from_file: list[str] = []
    given = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    overridden = kl.OPTIONS if kl.OPTIONS & given else ()
    for key, value in (_read_yaml(config) if config else {}).items():
        if key not in options or key in ("config", "help"):
            raise UserError(f"{config}: {_unknown(key, options)}")
        if key in overridden:
            continue
        if value is None:
            parser.set_defaults(**{key: None})
            options[key].required = False
        elif isinstance(value, list) and options[key].nargs == "+":
            from_file += [f"--{key}", *map(str, value)]
        else:
            from_file.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")

    try:
        *parsed, _, rest = parser.parse_args_into_dataclasses(
            from_file + argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (UserError, ValueError, TypeError, ImportError) as error:  # the last: a package that an option needs
        raise UserError(f"{config or 'options'}: {error}") from error
    if rest:
        raise UserError(_unknown(rest[0].removeprefix("--").partition("=")[0], options))
    trust = any(getattr(part, "trust_remote_code", False) for part in parsed)
    for part in parsed:
        if type(part).__name__ in kl.COEFFICIENTS and "kl_strength" in options:
            (strength,) = (config for config in parsed if isinstance(config, kl.KLConfig))
            kl.set_coefficient(strength, part, parser_defaults[kl.COEFFICIENTS[type(part).__name__]])
        if type(part).__name__ == "ModelConfig":
            _check_model(part)
            part.trust_remote_code = trust
            if ppo and part.load_in_8bit:
                raise UserError("PPO's value and reward model share weights, which 8 bits cannot; set load_in_4bit")
        if getattr(part, "n_gpu", 1) > 1:  # Trainer would split batches over them by itself, PPO would not
            raise UserError(
                f"one process sees {part.n_gpu} GPUs; use them with LAUNCH=ddp, or set CUDA_VISIBLE_DEVICES=0"
            )
        if getattr(part, "use_vllm", False) and find_spec("vllm") is None:
            raise UserError("use_vllm needs vLLM; pip install '.[vllm]' or unset it")
        if getattr(part, "use_liger_kernel", False) and find_spec("liger_kernel") is None:
            raise UserError("use_liger_kernel needs liger-kernel; pip install liger-kernel or unset it")
        if "torch" in sys.modules and hasattr(part, "optim"):
            _check_packages(part)
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(part, name, 1) < 1:
                raise UserError(f"{name} must be at least 1")
        if getattr(part, "temperature", 1) <= 0:
            raise UserError("temperature must be above 0; what is learned from must be sampled")
        if getattr(part, "output_dir", None):
            check_writable(Path(part.output_dir))
        for name, instead in IGNORED.get(type(part).__name__, {}).items():
            if getattr(part, name) != parser_defaults[name]:
                raise UserError(f"{name} has no place here; {instead}")
        order, online = getattr(part, "train_sampling_strategy", None), type(part).__name__ in ONLINE
        if order == "batch_rebalance" or (order == "sequential" and online):
            raise UserError(f"train_sampling_strategy: {order} has no place here; set group_by_length or random")
        for name, ours, instead in CLASHES.get(type(part).__name__, ()):
            if getattr(part, name) and getattr(part, ours) == DEFAULTS[ours]:
                raise UserError(f"{name} does not go with {ours}: {DEFAULTS[ours]}; set {ours}: {instead}")
    return tuple(parsed)


def _read_yaml(path: str) -> dict:
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"the config {path} cannot be read ({error.strerror}); check the path") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold 'key: value' lines")
    return config


def _check_packages(args: Any) -> None:
    """What a trainer would find out only when the model is loaded."""
    from transformers import Trainer
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
        Trainer.get_optimizer_cls_and_kwargs(args)
    except Exception as error:  # other errors are of what is not there yet
        if "install" in str(error):
            raise UserError(f"report_to or optim needs a package that is not here: {error}") from error


def _unknown(key: str, options: dict) -> str:
    close = difflib.get_close_matches(key, options, n=1)
    return f"unknown key {key}; " + (f"did you mean {close[0]}?" if close else "--help lists the known ones")


def _check_model(config: Any) -> None:
    if not config.model_name_or_path:
        raise UserError("model_name_or_path is not set; name a model folder or a hub model")
    if config.model_revision not in (None, "main") and Path(config.model_name_or_path).is_dir():
        raise UserError(f"model_revision {config.model_revision} is of the hub; the folder has one only, leave it out")
    if not (config.load_in_4bit or config.load_in_8bit):
        return
    if find_spec("bitsandbytes") is None:
        raise UserError("load_in_4bit and load_in_8bit need bitsandbytes; pip install bitsandbytes or unset them")
    if not config.use_peft:
        raise UserError("a quantized model cannot be trained itself; set use_peft: true to train LoRA adapters on it")
    if config.dtype != "bfloat16":
        raise UserError("TRL trains the adapters of a quantized model in bfloat16; set dtype: bfloat16")
