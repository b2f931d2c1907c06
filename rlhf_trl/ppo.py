"""TRL's PPOTrainer with its defects corrected. The loop itself is TRL's (1.12, the last release with it)."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl.experimental.ppo.ppo_trainer import OnlineTrainerState, first_true_indices, get_reward

from rlhf_trl.batching import seeded_order
from rlhf_trl.errors import UserError
from rlhf_trl.frames import Frame
from rlhf_trl.rewards import Reward

VALUE_MODEL = "value_model.pt"  # in a checkpoint
DILUTED = (
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
)


class CorrectedPPOTrainer(PPOTrainer):
    """PPOTrainer as its configuration describes it, on one process or on several under DDP.

    Each method is one correction. Those that concern the models are made where all recipes load them: clean
    generation settings (`models.load_start`), dtype (`models.load_options`), LoRA on a value model that starts
    from the reward model (`value_model_of`), a centred reward (`rewards.StandardisedHead`); and `check_batches` and
    `models.check_context` refuse data on which the loop would hang or crash.

    Left as it is, because it cannot be changed without copying the loop: the scores of a whole local batch are kept
    (batch x length x vocabulary x 4 bytes); of several processes each whitens its own advantages, and
    `val/num_eos_tokens` counts the main one's.
    """

    is_distributed_loading_by_transformers = False  # Trainer.__init__, which TRL never calls, would set it

    def __init__(
        self,
        args: PPOConfig,
        model: PreTrainedModel,
        value_model: PreTrainedModel,
        reward: Reward,
        frame: Frame,
        peft_config: LoraConfig | None = None,
        **options,
    ) -> None:
        if peft_config is not None:  # TRL would cast the norms of a 4-bit policy to another dtype than its head's
            model = get_peft_model(model, peft_config)
        _configure_checkpointing(args, model, value_model)
        self.reward, self.frame, self.finished = reward, frame, 0
        models = {"model": model, "value_model": value_model, "reward_model": reward.model}
        super().__init__(args=args, processing_class=frame.tokenizer, **models, **options)
        self._stop_at_every_end()
        self._step_once_per_mini_batch()
        self._clip_gradients()
        self._order_prompts_by_seed()
        self._show_what_wrappers_hide()

    def _stop_at_every_end(self) -> None:
        """TRL knows one end of a reply. The penalty for none is in the reward."""
        ends = sorted(self.frame.ends)
        self.policy_model.generation_config.eos_token_id = ends
        self.stop_token_id = torch.tensor(ends, device=self.accelerator.device)
        self.args.missing_eos_penalty = None

    def _get_reward(
        self, model: PreTrainedModel, ids: torch.Tensor, pad_token_id: int, context_length: int
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """TRL's reads what was sampled and nothing else, which is right for the value model."""
        if model is not self.reward.model:
            return get_reward(model, ids, pad_token_id, context_length)
        prompts = [row[first_true_indices(row != pad_token_id) :].tolist() for row in ids[:, :context_length]]
        responses = [row[: first_true_indices(row == pad_token_id)].tolist() for row in ids[:, context_length:]]
        self.finished += sum(map(self.frame.finished, responses))
        return None, self.reward(prompts, responses).to(ids.device), None

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

    def _order_prompts_by_seed(self) -> None:
        """TRL shuffles by the global random state, which a resumed run cannot have again at the start of a pass."""
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        sampler = seeded_order(self.args, lengths, self.local_dataloader_batch_size * self.args.world_size)
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.local_dataloader_batch_size,
            sampler=sampler,
            generator=torch.Generator(),  # or each pass would draw from the global state
            collate_fn=self.data_collator,
            drop_last=True,
        )
        self.dataloader = self.accelerator.prepare(loader)

    def _show_what_wrappers_hide(self) -> None:
        """TRL and Trainer read attributes of the model that TRL's wrapper of policy and value model, or DDP's around
        it, does not have."""
        wrapper = self.accelerator.unwrap_model(self.model)
        wrapper._keys_to_ignore_on_save = self.policy_model._keys_to_ignore_on_save
        if self.model is not wrapper:
            for name in ("policy", "value_model", "config", "_keys_to_ignore_on_save"):
                self.model.__dict__[name] = getattr(wrapper, name)  # set plainly, a module would be registered twice

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL averages statistics over `num_mini_batches` times too many slots, the rest of them zero; and for `eps`
        it divides the episodes of the whole run by the time of its resumed part."""
        if "eps" in logs:
            logs["eps"] = int(logs["eps"] * (1 - self.episodes_before / self.state.episode))
        slots = self.args.num_mini_batches
        if "val/ratio" in logs and slots > 1:
            filled = self.args.num_ppo_epochs * self.args.gradient_accumulation_steps * self.args.world_size
            total = filled * slots
            square_sum = logs["val/ratio_var"] * (total - 1) + total * logs["val/ratio"] ** 2
            for name in DILUTED:
                logs[name] *= slots
            logs["val/ratio_var"] = (square_sum - filled * logs["val/ratio"] ** 2) / (filled - 1)
        if "val/num_eos_tokens" in logs:
            logs["val/num_eos_tokens"], self.finished = self.finished, 0
        super().log(logs, start_time)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """TRL leaves the value model out of its checkpoints."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            trained = {name: p for name, p in self.value_model.named_parameters() if p.requires_grad}
            torch.save(trained, Path(output_dir) / VALUE_MODEL)

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """TRL's loop always starts at step 0. From a checkpoint, it runs what is left: with the policy, value model,
        optimizer, scheduler, counters, random state and place in the data of the run that wrote it."""
        total, self.episodes_before = self.args.num_total_batches, 0
        if resume_from_checkpoint is not None:
            checkpoint = Path(resume_from_checkpoint)
            self._load_from_checkpoint(resume_from_checkpoint, self.policy_model)
            self.value_model.load_state_dict(_load(checkpoint / VALUE_MODEL), strict=False)
            self.optimizer.load_state_dict(_load(checkpoint / OPTIMIZER_NAME))
            self.lr_scheduler.load_state_dict(_load(checkpoint / SCHEDULER_NAME))
            before = OnlineTrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            self.episodes_before = before.episode
            self.dataloader = self._batches_after(before.global_step, self.dataloader)
            self.callback_handler.callbacks.insert(0, _Counters(before, total))  # before the progress bar
            self.args.num_total_batches -= before.global_step
            self._load_rng_state(resume_from_checkpoint)
        with patch.multiple(ppo_trainer, truncate_response=_truncate, get_reward=self._get_reward):
            super().train()
        self.args.num_total_batches = total

    def _batches_after(self, done: int, loader: DataLoader) -> Iterator[dict]:
        loader.iteration, loader.skip_batches = divmod(done, len(loader))
        while True:
            yield from loader
            loader.skip_batches = 0


class _Counters(TrainerCallback):
    """Sets the counters of a resumed run after TRL has reset them."""

    def __init__(self, before: OnlineTrainerState, total: int) -> None:
        self.before, self.total = before, total

    def on_train_begin(self, args, state, control, **_) -> None:
        state.global_step, state.episode = self.before.global_step, self.before.episode
        state.max_steps = self.total
        state.compute_steps(args, self.total)


def check_batches(args: PPOConfig, prompts: int) -> None:
    """Refuse settings under which TRL's loop hangs or fails late.

    Raises:
        UserError: fewer rows than one batch (TRL would spin for ever), or batches that do not divide.
    """
    processes = PartialState().num_processes
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    if prompts < batch:
        raise UserError(
            f"PPO needs at least one batch of {batch} prompts (per_device_train_batch_size x "
            f"gradient_accumulation_steps x {processes} processes) and the data has {prompts}; use more data or "
            "smaller batches"
        )
    if args.gradient_accumulation_steps % args.num_mini_batches:
        raise UserError(
            f"num_mini_batches={args.num_mini_batches} must divide "
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}"
        )


def value_model_of(reward_model: PreTrainedModel, peft_config: LoraConfig | None) -> PreTrainedModel:
    """The start of the value model: the reward model with its standardised head. With LoRA the two share one set of
    frozen weights, and only the adapter and a head of its own are added.

    (`peft_config` given to TRL's trainer wraps the policy only; the value model would be a second model, trained in
    full.)
    """
    if peft_config is None:
        return copy.deepcopy(reward_model)
    tensors = itertools.chain(reward_model.parameters(), reward_model.buffers())
    sharing = copy.deepcopy(reward_model, {id(tensor): tensor for tensor in tensors})
    return get_peft_model(sharing, peft_config).get_base_model()


def _configure_checkpointing(args: PPOConfig, *models) -> None:
    """TRL ignores `gradient_checkpointing` outside of distributed launchers."""
    if args.gradient_checkpointing:
        for model in models:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()


def _truncate(ends: torch.Tensor, pad_token_id: int, responses: torch.Tensor) -> torch.Tensor:
    """Pad responses, of shape (batch, length), behind the first of `ends`."""
    ended = torch.isin(responses, ends).cumsum(1)
    return responses.masked_fill(ended - torch.isin(responses, ends).int() > 0, pad_token_id)


def _load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)
