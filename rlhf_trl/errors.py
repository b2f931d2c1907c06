"""What a user can cause ends in one line and exit code 2; everything else keeps its traceback.

So does what a library says of a model, a file or an option while things are loaded and built; but not in `work`.
"""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, TracebackType

OURS = {"__main__", "rlhf_trl", "recipes", "eval"}
LIBRARIES = {
    *("accelerate", "datasets", "huggingface_hub", "jinja2", "peft", "safetensors", "tokenizers", "transformers"),
    "trl",
}
LONGEST = 300  # characters of what a library said
WORK: set[CodeType] = set()


class UserError(Exception):
    """A mistake in the input. The message says what is wrong and what to do, in one line."""


def work(function: Callable) -> Callable:
    """Mark what runs when all is loaded and built: a library's error in it is a defect of ours."""
    WORK.add(function.__code__)
    return function


def user_message(error: Exception) -> str | None:
    """What to tell a user in one line; None for a defect."""
    said = " ".join(str(error).split())
    if isinstance(error, UserError):
        return said
    library = _called_library(error.__traceback__)
    if library is None or hasattr(error, "in_training"):  # as `Run` marks it
        return None
    if " " not in said:  # a KeyError's
        said = f"{type(error).__name__} {said}"
    if len(said) > LONGEST:  # what to do often stands last
        said = f"{said[: LONGEST // 2]} ... {said[-LONGEST // 2 :]}"
    return f"{said} ({library}); change the model, file or option that it is about; RLHF_TRL_TRACEBACK=1 shows where"


def _called_library(trace: TracebackType | None) -> str | None:
    """The library that our code called when an error was raised; None if it called none of `LIBRARIES`, or worked."""
    library = None
    for frame, _ in traceback.walk_tb(trace):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if frame.f_code in WORK:
            return None
        if package in OURS:
            library = None
        elif library is None and package != "importlib":
            library = package
    return library if library in LIBRARIES else None


def check_folder(name: str, kind: str) -> None:
    """Refuse the path of a folder that is not there. What does not look like a path may be a name on the hub.

    Raises:
        UserError: no such folder.
    """
    is_path = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if is_path and not Path(name).exists():
        raise UserError(f"the {kind} folder {name} does not exist; check the path or make it first")


def check_writable(folder: Path, variable: str = "RUNS or output_dir") -> None:
    """Find out, without writing, whether `folder` can be made and written to; `variable` is what names it.

    Raises:
        UserError: it cannot.
    """
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot write to {folder}: {existing} is no writable folder; set {variable}")
