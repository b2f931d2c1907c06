"""TRL's PPOTrainer with its defects corrected. The loop itself is TRL's (1.12, the last release with it)."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel
from trl.experimental.ppo import PPOConfig, PPOTrainer

from rlhf_trl.errors import UserError
from rlhf_trl.models import inject_lora
from rlhf_trl.rewards import load_reward_model


class CorrectedPPOTrainer(PPOTrainer):
    """PPOTrainer as its configuration describes it.

    Each method below is one correction. They concern a single process.
    """

    def __init__(self, args: PPOConfig, model, value_model, peft_config: LoraConfig | None = None, **kwargs) -> None:
        if peft_config is not None:  # TRL would cast the norms of a 4-bit policy to another dtype than its head's
            model = get_peft_model(model, peft_config)
        _configure_checkpointing(args, model, value_model)
        super().__init__(args=args, model=model, value_model=value_model, **kwargs)
        self._step_once_per_mini_batch()
        self._clip_gradients()

    def _step_once_per_mini_batch(self) -> None:
        """TRL accumulates over the whole batch, so `num_mini_batches` would add no optimizer steps; and it
        lets the last batch of a pass over the data step on every micro-batch."""
        self.accelerator.gradient_accumulation_steps = (
            self.args.gradient_accumulation_steps // self.args.num_mini_batches
        )
        self.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False

    def _clip_gradients(self) -> None:
        """TRL ignores `max_grad_norm`."""
        if self.args.max_grad_norm:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

            def clip(*_) -> None:
                torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)

            self.optimizer.optimizer.register_step_pre_hook(clip)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL averages statistics over `num_mini_batches` times too many slots, the rest of them zero."""
        slots = self.args.num_mini_batches
        if "val/ratio" in logs and slots > 1:
            filled = self.args.num_ppo_epochs * self.args.gradient_accumulation_steps
            total = filled * slots
            square_sum = logs["val/ratio_var"] * (total - 1) + total * logs["val/ratio"] ** 2
            for name in DILUTED:
                logs[name] *= slots
            logs["val/ratio_var"] = (square_sum - filled * logs["val/ratio"] ** 2) / (filled - 1)
        super().log(logs, start_time)


DILUTED = (
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
)


def check_batches(args: PPOConfig, prompts: int) -> None:
    """Refuse settings under which TRL's loop hangs or fails late.

    Raises:
        UserError: fewer rows than one batch (TRL would spin for ever), or batches that do not divide.
    """
    local_batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if prompts < local_batch:
        raise UserError(
            f"PPO needs at least one batch of {local_batch} prompts (per_device_train_batch_size x "
            f"gradient_accumulation_steps) and the data has {prompts}; use more data or smaller batches"
        )
    if args.gradient_accumulation_steps % args.num_mini_batches:
        raise UserError(
            f"num_mini_batches={args.num_mini_batches} must divide "
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}"
        )


def load_value_model(reward_model_path: str, peft_config: LoraConfig | None, **load_options) -> PreTrainedModel:
    """The reward model with its standardised head as the start of the value model, with LoRA if configured.

    (`peft_config` given to TRL's trainer wraps the policy only; the value model would train in full.)
    """
    model = load_reward_model(reward_model_path, **load_options)
    return model if peft_config is None else inject_lora(model, peft_config)


def _configure_checkpointing(args: PPOConfig, *models) -> None:
    """TRL ignores `gradient_checkpointing` outside of distributed launchers."""
    if args.gradient_checkpointing:
        for model in models:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
