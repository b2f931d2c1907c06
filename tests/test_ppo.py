"""What CorrectedPPOTrainer corrects, each against TRL's PPOTrainer, so that a fix upstream is noticed."""

import inspect

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback, set_seed
from trl import ModelConfig
from trl.experimental.ppo import PPOConfig, PPOTrainer

from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.models import check_context, load_start
from rlhf_trl.ppo import VALUE_MODEL, CorrectedPPOTrainer, check_batches, value_model_of
from rlhf_trl.rewards import Reward, load_reward_model

ROLLOUTS, EPOCHS, MINI_BATCHES = 2, 2, 2
PROMPTS = [[20 + i, 30, 40] for i in range(8)]
MEAN = 100.0  # of the scores of the reward model below
LORA = {"r": 2, "target_modules": ["q_proj"]}


class Log(TrainerCallback):
    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **_):
        self.rows.append(dict(logs))


def model_config(folder, **options):
    config = ModelConfig(model_name_or_path=str(folder), **options)
    config.trust_remote_code = False
    return config


@pytest.fixture(scope="module")
def source(world):
    return model_config(world / "model")


@pytest.fixture(scope="module")
def reward_model(world, tmp_path_factory):
    """A folder as the reward recipe leaves it, with scores that are far from centred; loads it anew each time."""
    folder = tmp_path_factory.mktemp("reward")
    model = AutoModelForSequenceClassification.from_pretrained(world / "model", num_labels=1)
    model.config.reward_mean, model.config.reward_std = MEAN, 1.0
    model.save_pretrained(folder)
    load_frame(str(world / "model")).tokenizer.save_pretrained(folder)
    return lambda: load_reward_model(str(folder), DataConfig(str(world / "data")), seed=0)[0]


def build(trainer_class, source, folder, policy=None, prompts=PROMPTS, reward_model=None, **options):
    """Two rollouts of 8 prompts, 2 epochs of 2 mini-batches of 2 micro-batches of 2 prompts."""
    set_seed(0)
    frame = load_frame(source.model_name_or_path)
    args = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_mini_batches": MINI_BATCHES,
        "num_ppo_epochs": EPOCHS,
        "total_episodes": 8 * ROLLOUTS,
        "response_length": 6,
        "stop_token": "eos",
        "temperature": 1.0,
        "num_sample_generations": 0,
        "learning_rate": 1e-6,
        "max_grad_norm": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
    }
    peft = {name: options.pop(name) for name in ("peft_config", "value_model") if name in options}
    classifiers = (
        AutoModelForSequenceClassification.from_pretrained(source.model_name_or_path, num_labels=1) for _ in range(2)
    )
    reward_model, args = reward_model or next(classifiers), PPOConfig(**args | options)
    if trainer_class is CorrectedPPOTrainer:
        own = {"frame": frame, "reward": Reward(reward_model, frame, [], args.missing_eos_penalty, batch_size=8)}
    else:
        own = {"processing_class": frame.tokenizer, "reward_model": reward_model}
    return trainer_class(
        args=args,
        model=policy or load_start(source, "CAUSAL_LM", frame),
        ref_model=None,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[Log()],
        **own | {"value_model": next(classifiers)} | peft,
    )


def rows_of(trainer):
    log = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Log))
    return [row for row in log.rows if "val/ratio" in row]


@pytest.fixture(scope="module", params=[PPOTrainer, CorrectedPPOTrainer], ids=["plain", "corrected"])
def trainer_class(request):
    return request.param


@pytest.fixture(scope="module")
def trained(trainer_class, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    options = {"gradient_checkpointing": True, "save_strategy": "steps", "save_steps": 1}
    trainer = build(trainer_class, source, folder, **options)
    norms = []

    def record(optimizer, *_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(grads).item())

    trainer.optimizer.optimizer.register_step_pre_hook(record)
    trainer.train()
    return trainer_class is CorrectedPPOTrainer, norms, trainer, folder


def test_each_mini_batch_is_one_step(trained):
    """TRL accumulates over whole batches and, where a pass over the data ends, steps on every micro-batch."""
    corrected, norms, _, _ = trained
    assert (len(norms) == ROLLOUTS * EPOCHS * MINI_BATCHES) == corrected


def test_gradients_are_clipped(trained):
    corrected, norms, _, _ = trained
    assert (max(norms) <= 1e-3 * 1.01) == corrected


def test_statistics_are_not_diluted(trained):
    """With so small a learning rate every probability ratio is 1."""
    corrected, _, trainer, _ = trained
    for row in rows_of(trainer):
        assert row["val/ratio"] == pytest.approx(1 if corrected else 1 / MINI_BATCHES, abs=0.01)
        assert (row["val/ratio_var"] < 0.01) == corrected


def test_checkpointing_is_on_as_configured(trained):
    corrected, _, trainer, _ = trained
    assert trainer.policy_model.is_gradient_checkpointing == corrected


def test_checkpoints_hold_the_value_model(trained):
    corrected, _, trainer, folder = trained
    saved = [path for path in (folder / "checkpoint-1").iterdir() if path.name == VALUE_MODEL]
    assert bool(saved) == corrected
    assert ("resume_from_checkpoint" in inspect.signature(trainer.train).parameters) == corrected
    if corrected:
        assert set(torch.load(saved[0])) == {name for name, _ in trainer.value_model.named_parameters()}


def test_the_wrapper_shows_what_trainer_reads(trained):
    corrected, _, trainer, _ = trained
    assert hasattr(trainer.model, "_keys_to_ignore_on_save") == corrected  # read when weights are loaded
    assert hasattr(trainer, "is_distributed_loading_by_transformers") == corrected  # read when rank 1 saves


def test_plain_ppo_misses_the_policy_behind_another_wrapper(source, tmp_path):
    """As DDP's is; that ours does not is tested in two processes."""
    trainer = build(PPOTrainer, source, tmp_path, peft_config=LoraConfig(**LORA))

    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    trainer.model = Wrapper(trainer.model)
    with pytest.raises(AttributeError, match="policy"), trainer.null_ref_context():
        pass


def test_the_order_of_prompts_depends_on_the_seed_alone(trainer_class, source, tmp_path):
    """And not on what was drawn from the global random state before, which no resumed run can repeat."""
    trainer = build(trainer_class, source, tmp_path, prompts=[[20 + i] for i in range(24)])
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        orders.append(torch.cat([batch["input_ids"] for batch in trainer.dataloader]).flatten().tolist())
        trainer.dataloader.iteration = 0
    assert (orders[0] == orders[1]) == (trainer_class is CorrectedPPOTrainer)
    assert orders[0] != sorted(orders[0])


def test_a_policy_generates_by_eos_and_pad_alone(trainer_class, source, tmp_path):
    """TRL fills what its generation settings leave open from the model's own: here a repetition penalty, so that
    samples come from another distribution than the one whose ratios are computed."""
    model = AutoModelForCausalLM.from_pretrained(source.model_name_or_path)
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(tmp_path / "penalised")
    frame = load_frame(source.model_name_or_path)
    frame.tokenizer.save_pretrained(tmp_path / "penalised")
    penalised = model_config(tmp_path / "penalised")
    corrected = trainer_class is CorrectedPPOTrainer
    policy = (
        load_start(penalised, "CAUSAL_LM", frame)
        if corrected
        else AutoModelForCausalLM.from_pretrained(penalised.model_name_or_path)
    )
    trainer = build(trainer_class, penalised, tmp_path, policy=policy)
    trainer.train()
    ratio = rows_of(trainer)[0]["val/ratio"] * (1 if corrected else MINI_BATCHES)
    assert (abs(ratio - 1) < 1e-3) == corrected


def test_a_value_model_gets_lora_and_starts_as_the_reward_model(trainer_class, source, reward_model, tmp_path):
    """`peft_config` leaves TRL's value model to be trained in full."""
    corrected = trainer_class is CorrectedPPOTrainer
    options = {"peft_config": LoraConfig(task_type="CAUSAL_LM", **LORA)}
    if corrected:
        options["value_model"] = value_model_of(reward_model(), LoraConfig(task_type="SEQ_CLS", **LORA))
    trainer = build(trainer_class, source, tmp_path, **options)
    trainable = {name for name, p in trainer.value_model.named_parameters() if p.requires_grad}
    assert all("lora" in name or "score" in name for name in trainable) == corrected
    ids = torch.tensor([[20, 30, 40]])
    scorer = reward_model()
    with torch.no_grad():
        assert torch.allclose(trainer.value_model(ids).logits, scorer(ids).logits) == corrected


def test_rewards_are_centred_and_a_missing_end_costs_its_penalty_once(trainer_class, source, reward_model, tmp_path):
    """Next to no reply of six tokens ends."""
    corrected = trainer_class is CorrectedPPOTrainer
    model = reward_model() if corrected else None
    trainer = build(trainer_class, source, tmp_path, reward_model=model, missing_eos_penalty=50.0)
    trainer.train()
    offset = -50 - (MEAN if corrected else 0)
    assert rows_of(trainer)[0]["objective/scores"] == pytest.approx(offset, abs=20)


def test_plain_ppo_ignores_bf16(source, tmp_path):
    """The recipe refuses the option (tests/test_config.py) and loads models in the configured dtype instead."""
    trainer = build(PPOTrainer, source, tmp_path, bf16=True)
    assert trainer.accelerator.mixed_precision == "no"
    assert {p.dtype for p in trainer.policy_model.parameters()} == {torch.float32}
    source = model_config(source.model_name_or_path, dtype="bfloat16")
    policy = load_start(source, "CAUSAL_LM", load_frame(source.model_name_or_path))
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}


def test_data_on_which_plain_ppo_hangs_are_refused(source, tmp_path):
    trainer = build(PPOTrainer, source, tmp_path, prompts=PROMPTS[:7])
    assert len(list(trainer.dataloader)) == 0  # it asks again and again for a batch
    with pytest.raises(UserError, match="at least one batch of 8 prompts"):
        check_batches(trainer.args, len(PROMPTS[:7]))


def test_prompts_on_which_plain_ppo_crashes_are_refused(world, tmp_path):
    gpt2 = model_config(world / "gpt2")  # 96 positions
    trainer = build(PPOTrainer, gpt2, tmp_path, prompts=[[20] * 95] * 8)
    with pytest.raises(IndexError):
        trainer.train()
    with pytest.raises(UserError, match="do not fit the context"):
        check_context(gpt2, prompt_tokens=95, completion_tokens=6)
