"""The steps of a comparison: what runs each, which options it has, and where its result goes."""

from dataclasses import dataclass, field, fields
from functools import cache
from typing import NamedTuple

from rlhf_trl.config import RECIPES, TaskConfig
from rlhf_trl.outline import load, outline


@dataclass
class WorldConfig:
    """Where made-up data and model go."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Profile folder; gets dataset and model."})
    seed: int = field(default=0, metadata={"help": "Seed of data and model."})


class Step(NamedTuple):
    """A step of the graph. `folders`, in the profile's folder, are what it makes; the first one has its manifest."""

    command: tuple[str, ...]  # behind the interpreter
    configs: tuple[type | str, ...]  # its options; a class that takes long to import is named
    folders: tuple[str, ...]
    is_evaluation: bool = False
    is_shared: bool = False  # whether several processes can share its work out


def _evaluation(command: str, config: str, folder: str, **more) -> Step:
    return Step(("-m", "eval", command), (f"eval.config.{config}",), (folder,), is_evaluation=True, **more)


# In an order in which they can run
STEPS = {
    "world": Step(("-m", "rlhf_trl.demo"), (WorldConfig,), ("model", "dataset")),
    "data": _evaluation("data", "DataAnalysisConfig", "data"),
    **{name: Step((f"recipes/{name}.py",), recipe.configs, (name,)) for name, recipe in RECIPES.items()},
    "eval-reward": _evaluation("reward-model", "CardConfig", "reward-model"),
    "samples": _evaluation("samples", "SamplesConfig", "samples", is_shared=True),
    "score": _evaluation("score", "ScoreConfig", "scores", is_shared=True),
    "judge": _evaluation("judge", "JudgeConfig", "judge"),
    "report": _evaluation("report", "ReportConfig", "report"),
}


@cache
def outlines(step: str) -> tuple[type, ...]:
    """The classes of a step's options, in a form that is imported quickly, that of `fresh` first."""
    parts = (
        outline(part) if isinstance(part, str) and part.startswith("trl.") else part for part in STEPS[step].configs
    )
    return (TaskConfig, *(load(part) if isinstance(part, str) else part for part in parts))


@cache
def options_of(step: str) -> frozenset[str]:
    """The names of a step's options."""
    return frozenset(part.name for kind in outlines(step) for part in fields(kind) if part.init)
