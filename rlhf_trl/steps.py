"""The steps of a comparison: what runs each, which options it has, and where its result goes."""

from dataclasses import dataclass, field, fields
from functools import cache
from typing import NamedTuple

from rlhf_trl.config import RECIPES, DataConfig, TaskConfig
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


def _evaluation(command: str, folder: str, *configs: type | str, **more) -> Step:
    return Step(("-m", "eval", command), configs, (folder,), is_evaluation=True, **more)


# In an order in which they can run
STEPS = {
    "demo-data": Step(("-m", "rlhf_trl.demo"), (WorldConfig,), ("model", "dataset")),
    "data": _evaluation("data", "data", DataConfig, "eval.config.DataAnalysisConfig"),
    **{name: Step((f"recipes/{name}.py",), recipe.configs, (name,)) for name, recipe in RECIPES.items()},
    "eval-reward": _evaluation("reward-model", "reward-model", DataConfig, "eval.config.CardConfig"),
    "samples": _evaluation("samples", "samples", DataConfig, "eval.config.SamplesConfig", is_shared=True),
    "score": _evaluation("score", "scores", DataConfig, "eval.config.ScoreConfig", is_shared=True),
    "judge": _evaluation("judge", "judge", "eval.config.JudgeConfig"),
    "report": _evaluation("report", "report", "eval.config.ReportConfig"),
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
