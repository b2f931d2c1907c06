"""The command line of every step: strict options, and errors in one line.

YAML values and command-line options go through one parser and are checked alike.
"""

import argparse
import functools
import gc
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from trl import TrlParser

from rlhf_trl import kl
from rlhf_trl.config import RECIPES, TaskConfig
from rlhf_trl.errors import UserError, check_folder, check_writable, user_message
from rlhf_trl.options import DEFAULTS, refusals
from rlhf_trl.outline import load
from rlhf_trl.profiles import profile_values, read_profile, sections, unknown
from rlhf_trl.provenance import Task
from rlhf_trl.steps import STEPS, outlines

# Options that name folders, or something on the hub
FOLDERS = {"dataset": "dataset", "model_name_or_path": "model", "reward_model_path": "reward model"}

# For a process that is not its machine's first: no progress bars, no warnings
SILENCE = {
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def cli(main: Callable[[], None]) -> Callable[[], None]:
    """Turn a `UserError` raised by `main`, or a library's error outside of `work`, into one line on stderr and exit
    code 2.

    `RLHF_TRL_TRACEBACK=1` in the environment shows the traceback instead. Of several processes of one
    machine only the first speaks.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        speaks = os.environ.get("LOCAL_RANK", "0") == "0"
        if not speaks:
            os.environ |= SILENCE
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            warnings.simplefilter("ignore")
        gc.disable()  # a quarter of the time that the imports in `main` take
        # what our dependencies' next versions will change: the pins protect from it
        warnings.simplefilter("ignore", FutureWarning)
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        try:
            main()
        except Exception as error:
            message = user_message(error)
            if message is None or os.environ.get("RLHF_TRL_TRACEBACK"):
                raise
            if not speaks:  # the first process says the same, and then the launcher ends this one
                time.sleep(30)
            print("error:", message, file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            if speaks:
                print("interrupted; the same command goes on from what was complete", file=sys.stderr)
            sys.exit(130)

    return wrapper


def resume_garbage_collection() -> None:
    """Collect garbage again, which `cli` leaves off, but not what the imports made: TRL's PPO collects twice an update,
    and going through it would take nearly half a second each time."""
    gc.freeze()
    gc.enable()


class _Parser(TrlParser):
    def error(self, message: str) -> None:
        raise UserError(message)


def parse(step: str, description: str | None = None, argv: list[str] | None = None) -> tuple[Any, ...]:
    """What a step is asked for: its `Task`, and its options as the dataclasses of `STEPS`.

    Options come from `--config FILE.yaml` (a profile, or the options of this step alone) and the command line, which
    overrides the file. All that can be found out before the step's classes are imported is: mistakes in options,
    folders that are not there, and whether the step is finished, which ends the program.

    Raises:
        UserError: missing or broken file, unknown key, wrong type, missing folder, settings that contradict each
            other, or that a finished result was not made with.
    """
    argv = sys.argv[1:] if argv is None else argv
    task, *parts = read_task(step, argv, description)
    if task.is_finished():
        print(f"{step}: nothing to do; the result is in {task.folder}")
        sys.exit(0)
    for part, (option, kind) in itertools.product(parts, FOLDERS.items()):
        if getattr(part, option, None):
            check_folder(getattr(part, option), kind)
    classes = [load(part) if isinstance(part, str) else part for part in STEPS[step].configs]
    (_, *parts), _ = fill(description, (TaskConfig, *classes), argv, step)
    return task, *parts


def read_task(step: str, argv: list[str], description: str | None = None) -> tuple[Any, ...]:
    """The same by outlines of the classes, which are imported quickly; a finished result does not end the program."""
    (own, *parts), defaults = fill(description, outlines(step), argv, step)
    values = {name: value for part in parts for name, value in vars(part).items()}
    reads = [name for part in parts for name in getattr(part, "reads", ())]
    return Task.of(step, values, defaults, reads, own.fresh), *parts


def fill(
    description: str | None, classes: tuple[type, ...], argv: list[str], step: str | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Fill each dataclass from the config file and the options; returns them, and the defaults of all options.

    Unlike TRL's own parser this checks the types of YAML values too, names the closest known key for an unknown one,
    and falls back to the CPU and 32 bits where there is no accelerator (or no bfloat16).

    Raises:
        UserError: see `parse`.
    """
    parser = _parser(description, classes)
    options = {action.dest: action for action in reversed(parser._actions)}  # --it rather than --no_it
    defaults = {
        name: parser._get_value(action, action.default) if isinstance(action.default, str) else action.default
        for name, action in options.items()
    }
    if "kl_strength" in options:  # to tell what is given from TRL's default
        parser.set_defaults(**{name: None for name in kl.OPTIONS if name in options})
    named = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    config, values = _from_file(argv, step, options)
    from_file: list[str] = []
    overridden = kl.OPTIONS if kl.OPTIONS & named else ()
    for key, value in values.items():
        if key not in options or key in ("config", "help"):
            raise UserError(f"{config}: {unknown(key, options)}")
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
        raise UserError(unknown(rest[0].removeprefix("--").partition("=")[0], options))
    if step in RECIPES and (refused := next(refusals(step, values, defaults, named), None)):
        raise UserError(refused)
    _settle(parsed, defaults)
    return parsed, defaults


def _from_file(argv: list[str], step: str | None, options: Collection[str]) -> tuple[str | None, dict[str, Any]]:
    """The config file that is named, and what it says of the step; to a command that is none, what it says of the
    evaluation, as far as there are such options."""
    path = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    path.add_argument("--config")
    path.add_argument("--output_dir")
    given = path.parse_known_args(argv)[0]
    if given.config is None:
        return None, {}
    content = read_profile(given.config)
    folder = Path("runs") / Path(given.config).stem
    if given.output_dir:
        folder = Path(given.output_dir).parent if step in RECIPES else Path(given.output_dir)
    if step is not None or not sections(content):
        return given.config, profile_values(given.config, content, step, folder)
    values = {}
    for name in (name for name, row in STEPS.items() if row.is_evaluation):
        values |= profile_values(given.config, content, name, folder)
    return given.config, {key: value for key, value in values.items() if key in options}


def _settle(parsed: tuple[Any, ...], defaults: dict[str, Any]) -> None:
    """What concerns several of the dataclasses together, or the machine."""
    trust = any(getattr(part, "trust_remote_code", False) for part in parsed)
    strength = next((part for part in parsed if isinstance(part, kl.KLConfig)), None)
    for part in parsed:
        kind = type(part).__name__
        if strength and kind in kl.COEFFICIENTS:
            kl.set_coefficient(strength, part, defaults[kl.COEFFICIENTS[kind]])
        if kind == "ModelConfig":
            part.trust_remote_code = trust
        if not (getattr(part, "model_name_or_path", "m") and getattr(part, "tokenizer", "m")):
            raise UserError("no model is named; set base_model in the profile, or model_name_or_path or tokenizer")
        if getattr(part, "n_gpu", 1) > 1:  # Trainer would split batches over them by itself, PPO would not
            raise UserError(
                f"one process sees {part.n_gpu} GPUs; use them with LAUNCH=ddp, or set CUDA_VISIBLE_DEVICES=0"
            )
        if "torch" in sys.modules and hasattr(part, "optim"):
            _check_packages(part)
        if getattr(part, "output_dir", None):
            check_writable(Path(part.output_dir))


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


def _parser(description: str | None, classes: tuple[type, ...]) -> _Parser:
    """A parser of the options of these classes, with our own defaults and those that the machine decides."""
    parser = _Parser(
        classes,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file: a profile, or any of these options")
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
