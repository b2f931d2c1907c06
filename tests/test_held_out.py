"""The loss on validation rows: that of the published model, without a trace in its weights, and whole after kills."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_trl.config import DataConfig
from rlhf_trl.files import read_jsonl
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.tokens import build_dataset
from tests.conftest import settings
from tests.test_recipes import LORA
from tests.test_resume import attempt, in_step

DROPOUT = LORA | {"lora_dropout": 0.1}


def evaluated(folder):
    return [(row["step"], row["eval_loss"]) for row in read_jsonl(folder / "metrics.jsonl") if "eval_loss" in row]


@pytest.mark.parametrize(
    ("recipe", "base", "changes"),
    [
        ("sft", "gpt2", DROPOUT),
        ("reward", "model", {"train_sampling_strategy": "random"}),
        ("dpo", "gpt2", DROPOUT | {"disable_dropout": False}),
        ("dpo", "gpt2", DROPOUT | {"disable_dropout": False, "precompute_ref_log_probs": False}),
    ],
)
def test_an_evaluation_leaves_no_trace(recipe, base, changes, run, world, tmp_path):
    changes = changes | {"model_name_or_path": str(world / base), "max_rows": 20, "max_steps": 8}
    steps = {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}
    for name, more in {"without": {}, "steps": steps, "epochs": {"eval_strategy": "epoch"}}.items():
        code, out, error = run(recipe, "--config", settings(tmp_path / name, recipe, world, base, **changes | more))
        assert code == 0, error
        assert ("validation: 20 rows" in out) == bool(more)
    folders = [tmp_path / name / recipe for name in ("without", "steps", "epochs")]
    weights, *others = (load_file(next(folder.glob("*.safetensors"))) for folder in folders)
    for other in others:
        assert all(torch.equal(other[name], tensor) for name, tensor in weights.items())
    assert [[step for step, _ in evaluated(folder)] for folder in folders] == [[], [0, 3, 6, 8], [5, 8]]
    assert evaluated(folders[1])[-1] == evaluated(folders[2])[-1]


def test_it_is_the_loss_of_the_published_model_on_completions(run, world, tmp_path):
    changes = {"eval_strategy": "steps", "per_device_eval_batch_size": 1, "max_rows": 12}
    assert run("sft", "--config", settings(tmp_path, "sft", world, **changes))[0] == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    data = DataConfig(str(world / "data"), max_prompt_tokens=64, max_completion_tokens=32, max_rows=12)
    losses = []
    for row in build_dataset(data, "validation", load_frame(str(tmp_path / "sft")), seed=0):
        labels = [-100] * len(row["prompt_ids"]) + row["chosen_ids"]
        ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
        losses.append(model(input_ids=ids, labels=torch.tensor([labels])).loss.item())
    assert len(losses) == 12
    assert evaluated(tmp_path / "sft")[-1][1] == pytest.approx(sum(losses) / 12, rel=1e-5)


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_kills_leave_no_gap_in_it(recipe, strategy, world, tmp_path):
    """Checkpoints are at the end of epochs, of three steps, too."""
    changes = {"model_name_or_path": str(world / "model"), "max_rows": 12, "max_steps": 8, "save_steps": 1}
    changes |= {"eval_strategy": strategy, "eval_on_start": True} | ({"eval_steps": 2} if strategy == "steps" else {})
    attempt(recipe, settings(tmp_path / "unbroken", recipe, world, **changes))
    config = settings(tmp_path / "broken", recipe, world, **changes)
    attempt(recipe, config, in_step(4))
    attempt(recipe, config, in_step(2))
    attempt(recipe, config)
    broken, unbroken = (evaluated(tmp_path / way / recipe) for way in ("broken", "unbroken"))
    assert broken == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in unbroken]
    assert [step for step, _ in broken] == {"epoch": [0, 3, 6, 8], "steps": [0, 2, 4, 6, 8]}[strategy]


def test_a_learning_rate_can_watch_it(run, world, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 6, "max_rows": 8, "learning_rate": 10.0}
    changes |= {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}}
    assert run("sft", "--config", settings(tmp_path, "sft", world, **changes))[0] == 0
    rates = [row["learning_rate"] for row in read_jsonl(tmp_path / "sft/metrics.jsonl") if "loss" in row]
    assert rates[0] == 10 and rates[-1] < 10
