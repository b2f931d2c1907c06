"""Prompts that probe for failure modes, each with a check that a machine can make, where one is possible.

A YAML file of groups: `GROUP: [{prompt: TEXT, CHECK: VALUE}, ...]`. A prompt is one question or an HH dialogue; a
reply passes if all its checks hold. Checks:
    contains: "120"        the reply has it, as a whole word and in any case
    lacks: "great idea"    the reply has it not
    lines: 3               so many lines that are not empty
"""

import re
from pathlib import Path

import yaml

from rlhf_trl.data import REPLY
from rlhf_trl.errors import UserError

CHECKS = {
    "contains": lambda reply, text: _has(reply, text),
    "lacks": lambda reply, text: not _has(reply, text),
    "lines": lambda reply, count: sum(bool(line.strip()) for line in reply.splitlines()) == count,
}


def load_probes(path: str | None) -> list[dict]:
    """Probes in order, as dicts of `group`, `prompt` (an HH dialogue) and their checks; none without a path.

    Raises:
        UserError: the file cannot be read, or a probe in it is not one.
    """
    if path is None:
        return []
    try:
        groups = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        probes = [{"group": group, **probe} for group, entries in groups.items() for probe in entries]
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(f"the probes {path} cannot be read ({error}); expected GROUP: [{{prompt: ...}}]") from error
    for probe in probes:
        if not isinstance(probe.get("prompt"), str) or set(probe) - {"group", "prompt", *CHECKS}:
            raise UserError(f"{path}: {probe} is no probe; it has a prompt and checks of {', '.join(CHECKS)}")
        if not probe["prompt"].startswith("\n\nHuman:"):
            probe["prompt"] = f"\n\nHuman: {probe['prompt']}{REPLY}"
    return probes


def passes(probe: dict, reply: str) -> bool | None:
    """Whether a reply passes all checks of a probe; None for a probe that has none and is only to be read."""
    results = [check(reply, probe[name]) for name, check in CHECKS.items() if name in probe]
    return all(results) if results else None


def _has(reply: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(str(text))}(?!\w)", reply, re.IGNORECASE) is not None
