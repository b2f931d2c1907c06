"""Strict configs: YAML values and command-line options go through one parser and are checked alike."""

import argparse
import difflib
import itertools
import json
import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from rlhf_trl import kl
from rlhf_trl.errors import UserError, check_folder, check_writable
from rlhf_trl.options import DEFAULTS, refusals
from rlhf_trl.outline import load, outline

# Options that name folders, or something on the hub
FOLDERS = {"dataset": "dataset", "model_name_or_path": "model", "reward_model_path": "reward model"}

# Shares of the train split by use, disjoint by prompt: DPO trains on the reward pairs, so that all methods see the same
# preferences; policy holds PPO's and GRPO's prompts; gold at least as many pairs as reward, for a second reward model
# to judge by; validation what settings are chosen on and rewards scaled by.
SPLITS = {"sft": 0.25, "reward": 0.25, "policy": 0.13, "gold": 0.27, "validation": 0.10}

ROW = ("prompt", "chosen", "rejected")  # of preference data
COLUMNS = (*ROW, "system")  # that are read; prompt and system may be missing


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
        named = [entry.partition("=") for entry in self.columns or ()]
        for name, equals, column in named:
            if [other for other, *_ in named].count(name) > 1:
                raise UserError(f"columns: {name} is named twice")
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
    parser = _parser(description, classes)
    options = {action.dest: action for action in reversed(parser._actions)}  # --it rather than --no_it
    defaults = {
        name: parser._get_value(action, action.default) if isinstance(action.default, str) else action.default
        for name, action in options.items()
    }
    if "kl_strength" in options:  # to tell what is given from TRL's default
        parser.set_defaults(**{name: None for name in kl.OPTIONS if name in options})
    named = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    path = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    path.add_argument("--config")
    config = path.parse_known_args(argv)[0].config
    from_file: list[str] = []
    overridden = kl.OPTIONS if kl.OPTIONS & named else ()
    for key, value in (_read_yaml(config) if config else {}).items():
        if key not in options or key in ("config", "help"):
            raise UserError(f"{config}: {_unknown(key, options)}")
        if key in overridden:
            continue
        named.add(key)
        is_list = isinstance(value, list) and options[key].nargs == "+"
        if value is None or (is_list and not value):
            parser.set_defaults(**{key: value})
            options[key].required = False
        elif is_list:
            from_file += [f"--{key}", *map(str, value)]
        elif value is False and "no" in (options[key].choices or ()):
            from_file.append(f"--{key}=no")  # which YAML reads as a truth value
        else:
            from_file.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")

    try:
        given, rest = parser.parse_known_args([*from_file, *argv])
        values = vars(given)
        parsed = tuple(part(**{f.name: values[f.name] for f in fields(part) if f.init}) for part in classes)
    except (UserError, ValueError, TypeError, ImportError) as error:  # the last: a package that an option needs
        raise UserError(f"{config or 'options'}: {error}") from error
    if rest:
        raise UserError(_unknown(rest[0].removeprefix("--").partition("=")[0], options))
    trust = any(getattr(part, "trust_remote_code", False) for part in parsed)
    for part in parsed:
        recipe = type(part).__name__.removesuffix("Config").lower()
        if recipe in RECIPES and (refused := next(refusals(recipe, values, defaults, named), None)):
            raise UserError(refused)
        if type(part).__name__ in kl.COEFFICIENTS and "kl_strength" in options:
            (strength,) = (config for config in parsed if isinstance(config, kl.KLConfig))
            kl.set_coefficient(strength, part, defaults[kl.COEFFICIENTS[type(part).__name__]])
        if type(part).__name__ == "ModelConfig":
            part.trust_remote_code = trust
            if not part.model_name_or_path:
                raise UserError("model_name_or_path is not set; name a model folder or a hub model")
        if getattr(part, "n_gpu", 1) > 1:  # Trainer would split batches over them by itself, PPO would not
            raise UserError(
                f"one process sees {part.n_gpu} GPUs; use them with LAUNCH=ddp, or set CUDA_VISIBLE_DEVICES=0"
            )
        if "torch" in sys.modules and hasattr(part, "optim"):
            _check_packages(part)
        if getattr(part, "output_dir", None):
            check_writable(Path(part.output_dir))
    return parsed


def _parser(description: str | None, classes: list[type]) -> _Parser:
    """A parser of the options of these classes, with our own defaults and those that the machine decides."""
    parser = _Parser(
        classes,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    options = {action.dest for action in parser._actions}
    parser.set_defaults(**{name: value for name, value in DEFAULTS.items() if name in options})
    if _launched_by("FSDP") and "precompute_ref_log_probs" in options:
        parser.set_defaults(precompute_ref_log_probs=False)  # TRL would ask a reference that is not on its GPU yet
    if "torch" in sys.modules and "bf16" in options:
        import torch

        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        bf16 = bf16 and "response_length" not in options  # which PPO has
        parser.set_defaults(use_cpu=not torch.accelerator.is_available(), bf16=bf16)
    return parser


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
