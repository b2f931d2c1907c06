"""What a trainer logs and costs, and checkpoints that a run can go on from."""

import json
import shutil
import time
from pathlib import Path

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerState

from rlhf_trl.files import checkpoints, write_json
from rlhf_trl.measure import StepCounter, TokenCounter, peak_memory_mb

SEALED = "sealed.json"  # in a complete checkpoint: how far the record was then
COSTS = ("seconds", "peak_memory_mb", "tokens", "optimizer_steps", "learning_rate_sum")  # of a run, in its manifest


class Recorder(TrainerCallback):
    """Appends what the trainer logs to `metrics.jsonl`, one JSON object a line, with its step; measures time, tokens
    and memory; seals checkpoints, so that a half-written one is never taken for a complete one.

    `keep` is how many checkpoints to keep; None for all. Only the newest keeps what a resume needs.
    """

    def __init__(self, path: Path, keep: int | None) -> None:
        self.path, self.keep, self.began = path, keep, False

    def start(self, trainer: Trainer, before: dict) -> None:
        """Begin to measure; `before` is the record in the checkpoint that the run goes on from."""
        self.before = dict.fromkeys((*COSTS, "num_tokens"), 0) | before
        self.trainer = trainer
        trainer._total_train_tokens = self.before["num_tokens"]  # TRL logs it as num_tokens and does not save it
        self.tokens, self.steps = TokenCounter(trainer.model), StepCounter()
        self.clock = time.perf_counter()
        trainer.add_callback(self)

    def record(self) -> dict:
        """So far: seconds, peak memory (MB, of this process), unpadded tokens of all processes, steps of the optimizer
        and the sum of their learning rates, bytes of metrics."""
        return {
            "seconds": round(self.before["seconds"] + time.perf_counter() - self.clock, 1),
            "peak_memory_mb": max(self.before["peak_memory_mb"], round(peak_memory_mb())),
            "tokens": self.before["tokens"] + self.tokens.total(),
            "optimizer_steps": self.before["optimizer_steps"] + self.steps.count,
            "learning_rate_sum": self.before["learning_rate_sum"] + self.steps.learning_rate_sum,
            "num_tokens": self.trainer._total_train_tokens,
            "metrics_bytes": self.path.stat().st_size,
        }

    def on_train_begin(self, args, state, control, **_) -> None:
        self.began = True
        self.path.touch()

    def on_step_end(self, args, state, control, **_) -> None:
        # What Trainer has gathered since it last logged is in no checkpoint
        control.should_log |= control.should_save or control.should_training_stop
        if args.eval_strategy == "epoch" and _ends_epoch(state) and state.epoch >= args.eval_delay:
            control.should_evaluate = True  # not behind this step's checkpoint, from which a run would go on without it

    def on_epoch_end(self, args, state, control, **_) -> None:
        control.should_evaluate &= not _ends_epoch(state)

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if state.is_world_process_zero and logs and "train_loss" not in logs:  # Trainer's summary is no step
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    def on_save(self, args, state, control, **_) -> None:
        record = self.record()
        PartialState().wait_for_everyone()  # each process writes a part of a checkpoint
        # The last is left unsealed: Trainer would go on from it with a step too many, and the result is saved next
        if not state.is_world_process_zero or state.global_step >= state.max_steps:
            return
        *older, newest = checkpoints(self.path.parent)
        write_json(newest / SEALED, record)
        self.thin_out(older)

    def thin_out(self, older: list[Path]) -> None:
        """Delete the oldest, so that with the newest checkpoint (or the result) `keep` are left; of these keep what is
        a model, and no more."""
        surplus = 0 if self.keep is None else max(0, len(older) + 1 - self.keep)
        for checkpoint in older[:surplus]:
            shutil.rmtree(checkpoint)
        for checkpoint in older[surplus:]:
            _keep_model_only(checkpoint)


def _ends_epoch(state: TrainerState) -> bool:
    return state.epoch == int(state.epoch)  # PPO counts none


def _keep_model_only(checkpoint: Path) -> None:
    """Drop what only a resume would need, its seal first."""
    (checkpoint / SEALED).unlink(missing_ok=True)
    for pattern in ("*.pt", "*.pth", "*.bin"):
        for path in checkpoint.glob(pattern):
            path.unlink()
    for path in checkpoint.glob("global_step*"):  # DeepSpeed's part
        shutil.rmtree(path)
