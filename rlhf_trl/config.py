"""Strict configs: YAML values and command-line options go through one parser and are checked alike."""

import argparse
import difflib
import gc
import json
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from rlhf_trl.errors import UserError, check_writable

# Options that would be accepted and do nothing or harm, and what to do instead. TRL's configs are named, not imported:
# that would take ten seconds, and most commands need none of them.
ALWAYS = {
    "resume_from_checkpoint": "run the same command again, and it goes on from its last checkpoint",
    "save_only_model": "leave it out: a killed run could not go on, and a finished one keeps only models anyway",
}
LENGTHS = ALWAYS | {"max_length": "set max_prompt_tokens and max_completion_tokens"}
IGNORED = {
    "PPOConfig": ALWAYS
    | {
        "max_steps": "set total_episodes",
        "bf16": "set dtype: bfloat16",
        "fp16": "set dtype: float16",
        "deepspeed": "set LAUNCH=ddp",
        "fsdp": "set LAUNCH=ddp",
    },
    "GRPOConfig": ALWAYS,
    "SFTConfig": LENGTHS,
    "RewardConfig": LENGTHS,
    "DPOConfig": LENGTHS,
}


@dataclass
class RunConfig:
    """How a training run is started."""

    fresh: bool = field(
        default=False,
        metadata={"help": "Throw away what a killed run left, instead of going on from its last complete checkpoint."},
    )


@dataclass
class RewardModelConfig:
    """The reward that GRPO learns from (PPO's own config has the same fields)."""

    reward_model_path: str = field(metadata={"help": "Run folder of the reward recipe."})
    missing_eos_penalty: float = field(
        default=1.0, metadata={"help": "Subtracted from the score of a completion that did not end."}
    )


class _Parser(TrlParser):
    def error(self, message: str) -> None:
        raise UserError(message)


def parse(description: str | None, *classes: type, argv: list[str] | None = None) -> tuple[Any, ...]:
    """Fill each dataclass from `--config FILE.yaml` and the options after it, which override the file.

    Unlike TRL's own parser this checks the types of YAML values too, names the closest known key for an
    unknown one, and falls back to the CPU and 32 bits where there is no accelerator (or no bfloat16).

    Raises:
        UserError: missing or broken file, unknown key, wrong type, or settings that contradict each other.
    """
    # The imports, for which `cli` disables it, are over. TRL's PPO collects garbage twice an update, and going through
    # what they made would take nearly half a second each time.
    gc.freeze()
    gc.enable()
    parser = _Parser(
        classes,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    options = {action.dest: action for action in parser._actions}
    if "bf16" in options:
        import torch

        ppo = any(part.__name__ == "PPOConfig" for part in classes)
        bf16 = not ppo and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        parser.set_defaults(use_cpu=not torch.accelerator.is_available(), bf16=bf16)

    argv = sys.argv[1:] if argv is None else argv
    parser_defaults = {name: action.default for name, action in options.items()}
    path = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    path.add_argument("--config")
    config = path.parse_known_args(argv)[0].config
    from_file: list[str] = []
    for key, value in (_read_yaml(config) if config else {}).items():
        if key not in options or key in ("config", "help"):
            raise UserError(f"{config}: {_unknown(key, options)}")
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
    for part in parsed:
        if type(part).__name__ == "ModelConfig":
            _check_model(part)
        if getattr(part, "n_gpu", 1) > 1:  # Trainer would split batches over them by itself, PPO would not
            raise UserError(
                f"one process sees {part.n_gpu} GPUs; use them with LAUNCH=ddp, or set CUDA_VISIBLE_DEVICES=0"
            )
        if getattr(part, "output_dir", None):
            check_writable(Path(part.output_dir))
        for name, instead in IGNORED.get(type(part).__name__, {}).items():
            if getattr(part, name) != parser_defaults[name]:
                raise UserError(f"{name} has no place here; {instead}")
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


def _unknown(key: str, options: dict) -> str:
    close = difflib.get_close_matches(key, options, n=1)
    return f"unknown key {key}; " + (f"did you mean {close[0]}?" if close else "--help lists the known ones")


def _check_model(config: Any) -> None:
    if not config.model_name_or_path:
        raise UserError("model_name_or_path is not set; name a model folder or a hub model")
    if not (config.load_in_4bit or config.load_in_8bit):
        return
    if find_spec("bitsandbytes") is None:
        raise UserError("load_in_4bit and load_in_8bit need bitsandbytes; pip install bitsandbytes or unset them")
    if not config.use_peft:
        raise UserError("a quantized model cannot be trained itself; set use_peft: true to train LoRA adapters on it")
    if config.dtype != "bfloat16":
        raise UserError("TRL trains the adapters of a quantized model in bfloat16; set dtype: bfloat16")
