"""What CorrectedPPOTrainer corrects, each against TRL's PPOTrainer, so that a fix upstream is noticed."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainerCallback, set_seed
from trl import ModelConfig
from trl.experimental.ppo import PPOConfig, PPOTrainer

from rlhf_trl.data import load_tokenizer
from rlhf_trl.models import load_causal_lm
from rlhf_trl.ppo import CorrectedPPOTrainer

ROLLOUTS, EPOCHS, MINI_BATCHES = 2, 2, 2


class Log(TrainerCallback):
    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **_):
        self.rows.append(dict(logs))


@pytest.fixture(scope="module", params=[PPOTrainer, CorrectedPPOTrainer], ids=["plain", "corrected"])
def trained(request, world, tmp_path_factory):
    """Two rollouts of 8 prompts, 2 epochs of 2 mini-batches of 2 micro-batches of 2 prompts."""
    set_seed(0)
    source = ModelConfig(model_name_or_path=str(world / "model"))
    tokenizer = load_tokenizer(source.model_name_or_path)
    args = PPOConfig(
        output_dir=str(tmp_path_factory.mktemp("ppo")),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_mini_batches=MINI_BATCHES,
        num_ppo_epochs=EPOCHS,
        total_episodes=8 * ROLLOUTS,
        response_length=6,
        stop_token="eos",
        temperature=1.0,
        num_sample_generations=0,
        learning_rate=1e-6,
        max_grad_norm=1e-3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=True,
        save_strategy="no",
        report_to="none",
    )
    scorer, value_model = (
        AutoModelForSequenceClassification.from_pretrained(world / "model", num_labels=1) for _ in range(2)
    )
    log = Log()
    policy = load_causal_lm(source, tokenizer)
    trainer = request.param(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=scorer,
        value_model=value_model,
        train_dataset=Dataset.from_dict({"input_ids": [[20 + i, 30, 40] for i in range(8)]}),
        callbacks=[log],
    )
    norms = []

    def record(optimizer, *_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(grads).item())

    trainer.optimizer.optimizer.register_step_pre_hook(record)
    trainer.train()
    rows = [row for row in log.rows if "val/ratio" in row]
    return request.param is CorrectedPPOTrainer, norms, rows, policy


def test_each_mini_batch_is_one_step(trained):
    """TRL accumulates over whole batches and, where a pass over the data ends, steps on every micro-batch."""
    corrected, norms, _, _ = trained
    assert (len(norms) == ROLLOUTS * EPOCHS * MINI_BATCHES) == corrected


def test_gradients_are_clipped(trained):
    corrected, norms, _, _ = trained
    assert (max(norms) <= 1e-3 * 1.01) == corrected


def test_statistics_are_not_diluted(trained):
    """With so small a learning rate every probability ratio is 1."""
    corrected, _, rows, _ = trained
    for row in rows:
        assert row["val/ratio"] == pytest.approx(1 if corrected else 1 / MINI_BATCHES, abs=0.01)
        assert (row["val/ratio_var"] < 0.01) == corrected


def test_checkpointing_is_on_as_configured(trained):
    corrected, _, _, policy = trained
    assert policy.is_gradient_checkpointing == corrected


def test_a_policy_generates_by_eos_and_pad_alone(world, tmp_path):
    """Or TRL would fill a field it leaves unset, such as a repetition penalty, from the model's own config."""
    source = ModelConfig(model_name_or_path=str(world / "model"))
    tokenizer = load_tokenizer(source.model_name_or_path)
    model = load_causal_lm(source, tokenizer)
    model.generation_config.repetition_penalty = 2.0
    model.save_pretrained(tmp_path / "penalised")
    source.model_name_or_path = str(tmp_path / "penalised")
    settings = load_causal_lm(source, tokenizer).generation_config.to_diff_dict()
    settings.pop("transformers_version")
    assert settings == {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
