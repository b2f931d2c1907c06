"""The profiles that benchmarks measure on, and the settings that recipes get there."""

import contextlib
import io
from dataclasses import fields
from pathlib import Path

import yaml
from datasets import Dataset

from rlhf_trl.cli import read_task
from rlhf_trl.config import RECIPES, DataConfig
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.profiles import profile_values, read_profile
from rlhf_trl.tokens import build_dataset

BATCH = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
PAIRS = BATCH | {"max_rows": 48, "warmup_steps": 0}
PPO_BATCH = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
# What makes the demo, and any other profile, bearable for two slow cores. DPO has a beta of its own, as TRL's must
CHANGES = {
    "demo": {
        "sft": {"num_train_epochs": 1},
        "reward": {"num_train_epochs": 1, "warmup_steps": 20},
        "dpo": {"max_rows": 2048, "beta": 0.3, "kl_strength": None},
        "ppo": {"total_episodes": 1536},
        "grpo": {"max_steps": 12},
        "samples": {},
    },
    "larger": {
        "sft": PAIRS,
        "reward": PAIRS,
        "dpo": PAIRS | {"beta": 0.1, "kl_strength": None},
        "ppo": PPO_BATCH | {"max_prompt_tokens": 64, "response_length": 32, "total_episodes": 16},
        "grpo": BATCH | {"max_prompt_tokens": 64, "max_completion_length": 32, "max_steps": 6, "num_generations": 4},
        "samples": {"max_prompt_tokens": 64, "max_new_tokens": 32, "prompts": 32, "batch_size": 32},
    },
}


def profile_settings(folder: Path, step: str) -> dict:
    """What the profile of a folder says of a step."""
    path = f"configs/{folder.name}.yaml"
    return profile_values(path, read_profile(path), step, folder)


def command(script: str, settings: dict, config: Path) -> list[str]:
    """The words that run a script with these settings, which are written to the config file."""
    config.write_text(yaml.safe_dump(settings))
    return [script, "--config", str(config)]


def parsed(recipe: str, *options: str) -> tuple:
    """A recipe's configs, as the recipe itself reads its options."""
    return read_task(recipe, [*options])[1:]


class Setup:
    """The SFT model, reward model and data in the folder of a profile, with its settings cut down by `CHANGES`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.policy, self.reward_model = folder / "sft", folder / "reward"
        self.changes = CHANGES.get(self.name, CHANGES["larger"])
        self.frame = load_frame(str(self.policy))
        self.dataset = yaml.safe_load((self.policy / "config.yaml").read_text())["dataset"]

    def settings(self, step: str) -> dict:
        """What the profile and `changes` say of a step, and what it works on: trainings start from the SFT model."""
        start = {"model_name_or_path": str(self.policy)} if step in RECIPES else {}
        settings = profile_settings(self.folder, step) | start | {"dataset": self.dataset, "seed": 0}
        return settings | self.changes[step]

    def rows(self, step: str, split: str, number: int | None = None) -> Dataset:
        """A step's rows of a split, or the first `number`."""
        settings = self.settings(step) | ({"max_rows": number} if number else {})
        names = [part.name for part in fields(DataConfig)]
        data = DataConfig(**{name: settings[name] for name in names if name in settings})
        with contextlib.redirect_stdout(io.StringIO()):
            return build_dataset(data, split, self.frame, seed=0)
