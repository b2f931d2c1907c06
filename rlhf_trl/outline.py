"""The options of TRL's config classes, known without the ten seconds that importing them takes."""

import os
import pickle
import re
import sys
from contextlib import suppress
from dataclasses import MISSING, Field, field, fields, make_dataclass
from enum import Enum
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints


def load(name: str) -> type:
    """The class itself."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def outline(name: str) -> type:
    """A dataclass with the fields of the one named, as an earlier import of it left them in the virtual environment."""
    versions = "-".join(map(version, ("trl", "transformers")))
    cache = Path(sys.prefix) / "rlhf-trl" / f"{name}-{versions}-{sys.implementation.cache_tag}.pickle"
    if cache.exists():
        members = pickle.loads(cache.read_bytes())
    else:
        original = load(name)
        types = get_type_hints(original)
        members = [(part.name, _plain(types[part.name]), _plain_field(part)) for part in fields(original)]
        with suppress(OSError):  # where nothing can be left, each time takes long
            cache.parent.mkdir(exist_ok=True)
            staging = cache.with_suffix(f".{os.getpid()}")
            staging.write_bytes(pickle.dumps(members))
            staging.replace(cache)
    return make_dataclass(
        name.rpartition(".")[2],
        [(member, kind, field(kw_only=True, **settings)) for member, kind, settings in members],
    )


def _plain(kind: Any) -> Any:
    """A type that no import is needed for: an enum's values, and text for any other class."""
    for part in get_args(kind):
        if isinstance(part, type) and issubclass(part, Enum):
            return Literal[*(member.value for member in part)]
    if re.search(r"\b(?!typing\b)\w+\.", str(kind)):
        return list[str] if "list[" in str(kind) else str
    return kind


def _plain_field(part: Field) -> dict[str, Any]:
    metadata = {name: list(value) if name == "choices" else value for name, value in part.metadata.items()}
    default = {"default": part.default} if part.default is not MISSING else {}
    if part.default_factory is not MISSING:
        default = {"default_factory": part.default_factory().copy}
    return default | {"metadata": metadata}
