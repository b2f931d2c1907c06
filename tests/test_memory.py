"""The memory that a recipe is said to need: its models, its optimizer, and what comes and goes with a batch."""

import importlib
import inspect
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoTokenizer

from eval.check import CheckedRecipe
from rlhf_trl import memory
from rlhf_trl.cli import fill
from rlhf_trl.config import RECIPES
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.outline import load
from rlhf_trl.run import Run
from rlhf_trl.tokens import build_dataset
from tests.conftest import settings
from tests.test_recipes import LORA


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_models_and_optimizers_hold_what_the_table_says(recipe, kind, world, tmp_path, monkeypatch):
    """Each recipe up to its first step: no parameter beside those of the table of recipes, none twice, and optimizer
    states for those alone that are trained."""
    counts = {}

    def count(run, trainer):
        reward = getattr(trainer, "reward_model", None)
        if recipe == "grpo":
            reward = inspect.getclosurevars(trainer.reward_funcs[0]).nonlocals["reward"].model
        models = [trainer.model, getattr(trainer, "ref_model", None), reward]
        parameters = {id(p): p for model in models if model is not None for p in model.parameters()}.values()
        optimizer = trainer.optimizer or trainer.create_optimizer()
        counts["all"] = sum(p.numel() for p in parameters)
        in_training = {id(p) for p in trainer.model.parameters()}
        counts["trained"] = sum(p.numel() for p in parameters if p.requires_grad and id(p) in in_training)
        counts["optimizer"] = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        raise SystemExit(0)

    step = settle(recipe, kind, world, tmp_path)
    with monkeypatch.context() as patch:
        run_with(count, recipe, tmp_path, patch)
    monkeypatch.setattr(memory, "peak", lambda *_: 0)  # takes a second
    expected = step.needs(0)
    assert counts == {"all": expected.parameters, "trained": expected.trainable, "optimizer": expected.trainable}


@pytest.mark.parametrize("kind", ["full", "lora", "checkpointed"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_estimate_is_near_what_a_training_takes(recipe, kind, world, tmp_path, monkeypatch):
    """TRL's own loop, whose tensors are added up as those of the estimate are."""
    peaks = []

    def measure(run, trainer):
        parts = (getattr(trainer, name, None) for name in ("model", "ref_model", "reward_model"))
        models = {str(i): part for i, part in enumerate(parts) if part is not None}
        with memory.LiveBytes(models, torch.device("cuda")) as live:  # exactly what is alive
            trainer.train()
        peaks.append(live.peak)
        raise SystemExit(0)

    step = settle(recipe, kind, world, tmp_path)
    run_with(measure, recipe, tmp_path, monkeypatch)
    monkeypatch.setattr(memory, "HEAP", 1)
    expected = step.needs(0)
    assert 1 / 1.5 < (expected.total - expected.weights) / peaks[0] < 1.5


def settle(recipe, kind, world, folder):
    """A recipe's config in `folder`, with models to start from, as the check sees it."""
    base = world / ("gpt2" if kind == "lora" else "model")
    changes = {"model_name_or_path": str(base), "gradient_checkpointing": kind == "checkpointed"}
    changes |= LORA if kind == "lora" else {}
    if recipe in ("ppo", "grpo"):
        changes["reward_model_path"] = str(make_reward_model(base, folder / "reward"))
    config = settings(folder, recipe, world, **changes)
    data, model, *_, args = filled(recipe, config)
    frame = load_frame(str(base))
    rows = build_dataset(data, RECIPES[recipe].splits[0], frame, seed=0)
    return CheckedRecipe(recipe, data, model, args, {}, None, frame, rows)


def filled(recipe, config):
    """A recipe's options."""
    classes = [load(part) if isinstance(part, str) else part for part in RECIPES[recipe].configs]
    return fill(None, classes, ["--config", str(config)], recipe)[0]


def run_with(train, recipe, folder, patch):
    """The recipe until it trains; `train` does that, and ends it."""
    patch.setattr(Run, "train", train)
    patch.setattr(sys, "argv", [recipe, "--config", str(folder / f"{recipe}.yaml")])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"recipes.{recipe}").main()


def make_reward_model(base, folder):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.reward_mean, model.config.reward_std, model.config.pad_token_id = 0.0, 1.0, 0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_what_is_alive_at_a_time_is_added_up():
    """Once each: views have no memory of their own, and what is freed makes room."""
    with memory.LiveBytes({}, torch.device("cuda")) as live:
        first = torch.zeros(1000)
        second = first + first[:1]
        assert live.live == live.peak == 8000
        del first
        assert live.live == 4000
        second.view(10, 100) + second.view(10, 100)
    assert (live.live, live.peak) == (4000, 8000)


@pytest.mark.parametrize("recipe", ["sft", "ppo", "dpo"])
def test_fake_tensors_take_what_real_ones_take(recipe, world, tmp_path):
    changes = LORA | {"model_name_or_path": str(world / "gpt2")}
    changes |= {"reward_model_path": str(world / "gpt2")} if recipe == "ppo" else {}
    config = settings(tmp_path, recipe, world, **changes)
    _, model_config, *_, args = filled(recipe, config)
    real, fake = (
        memory.build(recipe, AutoConfig.from_pretrained(world / "gpt2"), model_config, args) for _ in range(2)
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        expected = memory.peak(recipe, fake, args, longest=40)
    # real ones show that nothing is padded, and need no mask
    assert memory.peak(recipe, real, args, longest=40) == pytest.approx(expected, rel=0.1)
