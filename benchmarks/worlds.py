"""The models and data that `benchmarks/speed.py` measures on."""

import contextlib
import io
import json
import shutil
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import datasets
import yaml

from rlhf_trl.config import DataConfig
from rlhf_trl.files import replaced, write_atomically
from rlhf_trl.frame_loading import load_frame, set_pad
from rlhf_trl.frames import Frame
from rlhf_trl.measure import machine, versions
from rlhf_trl.models import align_special_tokens, load
from rlhf_trl.tokens import build_dataset


@dataclass(eq=False)
class World:
    """A model with its data, and the changes to its profile's configs that make it bearable for two slow cores."""

    name: str
    profile: str
    folder: Path  # for the records
    dataset: str
    policy: Path  # what every training starts from
    reward_model: Path
    changes: dict[str, dict]  # by recipe
    held_out: int | None  # pairs to test trained models on; None for all
    prompts: int  # to sample from
    batch_size: int  # of sampling and scoring
    max_new_tokens: int

    @cached_property
    def frame(self) -> Frame:
        """That of the policy."""
        return load_frame(str(self.policy))

    def settings(self, recipe: str) -> dict:
        """What differs from a recipe's config."""
        reward = {"reward_model_path": str(self.reward_model)} if recipe in ("ppo", "grpo") else {}
        models = {"model_name_or_path": str(self.policy)} | reward
        return {"dataset": self.dataset, "seed": 0} | models | self.changes[recipe]

    def data(self, recipe: str) -> DataConfig:
        """A recipe's settings of the data."""
        settings = read_config(self.profile, recipe) | self.settings(recipe)
        return DataConfig(**{part.name: settings[part.name] for part in fields(DataConfig) if part.name in settings})

    def rows(self, recipe: str, split: str, number: int | None = None) -> datasets.Dataset:
        """A recipe's rows of a split, or the first `number`."""
        config = self.data(recipe)
        config = replace(config, max_rows=number or config.max_rows)
        with contextlib.redirect_stdout(io.StringIO()):
            return build_dataset(config, split, self.frame, seed=0)

    def held_out_ids(self, side: str) -> list[tuple[list[int], list[int]]]:
        """Prompt and reply, `chosen` or `rejected`, of each held-out pair."""
        pairs = self.rows("reward", "eval", self.held_out)
        return list(zip(pairs["prompt_ids"], pairs[f"{side}_ids"], strict=True))


def demo(root: Path, folder: Path) -> World:
    changes = {
        "sft": {"num_train_epochs": 1},
        "reward": {"num_train_epochs": 1, "warmup_steps": 20},
        "dpo": {"max_rows": 2048, "beta": 0.3},
        "ppo": {"total_episodes": 1536},
        "grpo": {"max_steps": 12},
    }
    sizes = {name: read_config("demo", "eval")[name] for name in ("prompts", "batch_size", "max_new_tokens")}
    paths = str(root / "dataset"), root / "sft", root / "reward"
    world = World("demo", "demo", folder, *paths, changes, held_out=None, **sizes)
    drop_others(world)
    return world


def pretrained(model: str, dataset: str, pairs: int, folder: Path) -> World:
    """With LoRA, on few pairs and short prompts. Its tokenizer gets the pad token that both sides need."""
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    pairwise = batch | {"max_rows": pairs}
    sizes = {"response_length": 32, "total_episodes": 16}
    changes = {
        "sft": pairwise | {"warmup_steps": 0},
        "reward": pairwise | {"warmup_steps": 0},
        "dpo": pairwise | {"beta": 0.1},
        "ppo": sizes | {"max_prompt_tokens": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        "grpo": batch | {"max_prompt_tokens": 64, "max_completion_length": 32, "max_steps": 6, "num_generations": 4},
    }
    paths = dataset, folder / "policy", folder / "reward" / "ours-0" / "reward"
    sizes = {"held_out": 32, "prompts": 32, "batch_size": 32, "max_new_tokens": 32}
    world = World(Path(model).name, "smollm2", folder, *paths, changes, **sizes)
    drop_others(world, model)
    if not world.policy.exists():
        frame = set_pad(load_frame(model), model, read_config("smollm2", "sft")["pad_token"])
        with replaced(world.policy) as staging:
            policy = load(model, "CAUSAL_LM", frame.tokenizer, dtype="float32")
            align_special_tokens(policy, frame).save_pretrained(staging)
            frame.tokenizer.save_pretrained(staging)
    return world


def drop_others(world: World, *source: str) -> None:
    """Throw away records of other sizes, models, machines or versions."""
    path = world.folder / "settings.json"
    settings = json.dumps([asdict(world), source, machine(), versions()], default=str)
    if not path.exists() or path.read_text() != settings:
        shutil.rmtree(world.folder, ignore_errors=True)
        write_atomically(path, settings)


def read_config(profile: str, name: str) -> dict:
    return yaml.safe_load(Path(f"configs/{profile}/{name}.yaml").read_text())


def options(settings: dict) -> list[str]:
    lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    return [str(word) for key, values in lists.items() for word in (f"--{key}", *values)]
