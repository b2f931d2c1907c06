"""Prompts that probe for failure modes, each with a check that a machine can make, where one is possible.

A YAML file of groups: `GROUP: [{prompt: TEXT, CHECK: VALUE}, ...]`. A prompt is one question or an HH dialogue; a
reply passes if it is not empty and all its checks hold. Checks:
    contains: [eight, 8]   the reply has one of them, as a whole word and in any case
    lacks: [you are right] the reply has none of them
    starts: ["no"]         the reply begins with one of them
    lines: 3               so many lines that are not empty
"""

import re
from pathlib import Path

import yaml

from rlhf_trl.errors import UserError
from rlhf_trl.frames import REPLY

CHECKS = {
    "contains": lambda reply, texts: any(_has(reply, text) for text in texts),
    "lacks": lambda reply, texts: not any(_has(reply, text) for text in texts),
    "starts": lambda reply, texts: any(re.match(_word(text), reply, re.IGNORECASE) for text in texts),
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
        lists = all(isinstance(probe[name], list) for name in ("contains", "lacks", "starts") if name in probe)
        if not isinstance(probe.get("prompt"), str) or set(probe) - {"group", "prompt", *CHECKS} or not lists:
            raise UserError(f"{path}: {probe} is no probe; it has a prompt and checks of {', '.join(CHECKS)}")
        if not probe["prompt"].startswith("\n\nHuman:"):
            probe["prompt"] = f"\n\nHuman: {probe['prompt']}{REPLY}"
    return probes


def passes(probe: dict, reply: str) -> bool | None:
    """Whether a reply passes all checks of a probe; None for a probe that has none and is only to be read."""
    reply = reply.strip()
    results = [check(reply, probe[name]) for name, check in CHECKS.items() if name in probe]
    return bool(reply) and all(results) if results else None


def _has(reply: str, text: str) -> bool:
    return re.search(_word(text), reply, re.IGNORECASE) is not None


def _word(text: str) -> str:
    return rf"(?<!\w){re.escape(str(text))}(?!\w)"
