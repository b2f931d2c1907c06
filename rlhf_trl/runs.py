"""Run folders: everything a training run leaves behind, in place only when complete.

A run trains in `NAME.partial` beside its final folder and is renamed at the end, so that a folder with
the final name always holds a finished run. One that was killed goes on from its last complete checkpoint.
"""

import ctypes
import fcntl
import json
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, TrainingArguments, set_seed

from rlhf_trl.curves import plot_curves
from rlhf_trl.errors import UserError, imports_are_over, work
from rlhf_trl.files import weights_hash
from rlhf_trl.frame_loading import TOKEN_OPTIONS
from rlhf_trl.frames import TODAY, Frame
from rlhf_trl.measure import StepCounter, TokenCounter, machine, peak_memory_mb, versions
from rlhf_trl.tokens import fingerprint

# What a run leaves on its way: each is written when what it tells of is complete
STARTED = "started.json"  # in the staging folder: from what, and with which settings
SEALED = "sealed.json"  # in a checkpoint: it can be gone on from; how far the record was then
TRAINED = "trained.json"  # in the staging folder: training is over and the model saved; what it cost

# What a change of a setting means to a stopped run, by the first letters of its name: it cannot go on, as weights or
# steps are not what they were; the old value stays, as it is in the optimizer's and scheduler's state; nothing.
# After a change of any other setting it goes on with the new value.
DECIDES = (
    *("model_revision", "lora_", "use_peft", "use_rslora", "use_dora", "load_in_", "dtype", "optim", "processes"),
    *("per_device_train", "gradient_accumulation", "num_train_epochs", "max_steps", "total_episodes"),
)
STAYS = ("learning_rate", "lr_scheduler", "warmup_", "weight_decay", "adam_")
NO_MATTER = (
    *("log", "save_", "eval_", "do_eval", "dataloader_", "per_device_eval", "report_to", "disable_tqdm", "run_name"),
)

COSTS = ("seconds", "peak_memory_mb", "tokens", "optimizer_steps", "learning_rate_sum")  # of a run, in its manifest

M_MMAP_THRESHOLD = -3  # as malloc.h has it


def return_freed_memory() -> None:
    """Have glibc give what a tensor of 4 MiB or more took back to the system when it is freed.

    By itself glibc keeps it, in pieces that later tensors hardly fit: gradient checkpointing would save little. To have
    fresh memory each time takes longer.
    """
    with suppress(OSError, AttributeError):  # another system's library
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 4 * 2**20)


class Run:
    """One training run: opens its staging folder or goes on in it, trains, publishes the result.

    Opening one seeds every random generator and points `args.output_dir` at the staging folder. Left with an error
    before anything is trained, it takes back what it wrote. Of several processes each has its own `Run`, and the main
    one writes.

    Args:
        args: the trainer's arguments.
        configs: the other dataclasses that hold settings; one of them has `dataset`.
        frame: what the model reads and where a reply ends, which is saved with it.
        data: the rows trained on.
        parents: the models this run is made from, as `{"model": folder, "reward_model": folder}`.
        fresh: throw away what a killed run left.

    Raises:
        UserError: a killed run is there that cannot go on with this data, these models or settings; or one that runs.
    """

    def __init__(
        self, args: TrainingArguments, *configs: Any, frame: Frame, data: Dataset, parents: dict[str, str], fresh: bool
    ) -> None:
        imports_are_over()
        self.frame = frame
        self.folder = Path(args.output_dir)
        self.staging = self.folder.with_name(self.folder.name + ".partial")
        self.is_main = PartialState().is_main_process
        if self.is_main:
            settings = _settings(args, *configs)
            check_splits(settings["splits"], parents)
            self._lock()
            self._open(settings, data, parents, fresh)
        PartialState().wait_for_everyone()
        self.trained, self.checkpoint = (self.staging / TRAINED).exists(), self._checkpoint()
        args.output_dir = str(self.staging)
        for name in TOKEN_OPTIONS:  # TRL would have them act once more, on another tokenizer
            if hasattr(args, name):
                setattr(args, name, None)
        self.recorder = Recorder(self.staging / "metrics.jsonl", args.save_total_limit)
        args.save_total_limit = None  # the recorder deletes old checkpoints, and only when a newer one is complete
        set_seed(args.seed)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _) -> None:
        if error is None:
            return
        if self.recorder.began:
            error.in_training = True  # no user is told to mend it
        elif self.is_main and not self.recorder.path.exists():  # nor was anything trained before
            shutil.rmtree(self.staging)
            Path(self.lock.name).unlink()

    def train(self, trainer: Trainer) -> None:
        """Run the trainer's loop, from the last complete checkpoint if there is one; save the model and its card."""
        if self.trained:
            print(f"{self.folder.name}: had been trained when it was stopped; goes on with saving")
            return
        if self.checkpoint:
            print(f"{self.folder.name}: goes on from {self.checkpoint}")
            trainer.args.eval_on_start = False  # as it has been
        if trainer.args.gradient_checkpointing and trainer.args.device.type == "cpu":
            return_freed_memory()
        self.recorder.start(trainer, _read(self.checkpoint / SEALED) if self.checkpoint else {})
        trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if not self.recorder.record()["optimizer_steps"]:
            PartialState().wait_for_everyone()
            self.recorder.path.unlink(missing_ok=True)
            self.recorder.began = False
            raise UserError(f"{self.folder.name}: nothing was trained, no step was taken; use more data or more steps")
        trainer.save_model()
        if self.is_main:
            self.frame.generation_config().save_pretrained(self.staging)  # which an adapter would not have
        trainer.create_model_card(model_name=self.folder.name)
        record = self.recorder.record() | {"step": trainer.state.global_step}
        PartialState().wait_for_everyone()
        self.recorder.trainer = None  # its memory is needed for what comes next
        if self.is_main:
            _write(self.staging / TRAINED, record)

    @work
    def publish(self, model: PreTrainedModel | None = None) -> None:
        """Add curves and manifest, and give the folder its name; the main process does.

        `model`, if given, takes the place of the trained one, from which it was made.
        """
        if not self.is_main:
            return
        if model is not None:
            finished = self.staging / "finished"  # a kill in the middle of writing must leave the trained model whole
            shutil.rmtree(finished, ignore_errors=True)
            model.save_pretrained(finished)
            for path in finished.iterdir():
                path.replace(self.staging / path.name)
            finished.rmdir()
            for path in sorted(self.staging.glob("adapter_*")):  # its config first: without it, it is no adapter
                path.unlink()
        started, trained = _read(self.staging / STARTED), _read(self.staging / TRAINED)
        (self.staging / "config.yaml").write_text(yaml.safe_dump(started.pop("settings"), sort_keys=False))
        plot_curves(self.staging)
        manifest = started | {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "machine": machine(),
            "sha256": weights_hash(self.staging),
            "train": {name: trained[name] for name in COSTS},
        }
        _write(self.staging / "manifest.json", manifest)
        shutil.rmtree(self.staging / f"checkpoint-{trained['step']}", ignore_errors=True)  # is the result itself
        self.recorder.thin_out(_checkpoints(self.staging))
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self.staging.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        for name in (STARTED, TRAINED, "training_args.bin"):  # without them, a kill before could not be gone on from
            (self.folder / name).unlink(missing_ok=True)
        Path(self.lock.name).unlink()
        print(f"{self.folder.name}: done in {trained['seconds']:.0f} s; the result is in {self.folder}")

    def _open(self, settings: dict, data: Dataset, parents: dict[str, str], fresh: bool) -> None:
        """Start a staging folder, or check what a killed run left and cut off what it did after its checkpoint."""
        now = {
            "recipe": self.folder.name,
            "seed": settings["seed"],
            "date_in_templates": TODAY.isoformat(),
            "data": {
                "dataset": settings["dataset"],
                "splits": settings["splits"],
                "rows": len(data),
                "sha256": fingerprint(data),
            },
            "parents": {name: {"path": path, "sha256": weights_hash(path)} for name, path in parents.items()},
            "settings": settings,
            "resumed_at": [],  # steps
        }
        now["parents"]["model"]["revision"] = settings["model_revision"]
        trained = (self.staging / TRAINED).exists()
        if fresh or not (self._checkpoint() or trained):
            if self.staging.exists():  # renamed first, so that half of it cannot be gone on from
                dropped = self.folder.with_name(self.folder.name + ".dropped")
                shutil.rmtree(dropped, ignore_errors=True)
                self.staging.rename(dropped)
                shutil.rmtree(dropped)
            self.staging.mkdir(parents=True)
            _write(self.staging / STARTED, now)
            return
        before = _read(self.staging / STARTED)
        self._compare(before, now)
        if not trained:
            checkpoint = self._checkpoint()
            _write(self.staging / STARTED, now | {"resumed_at": [*before["resumed_at"], _step(checkpoint)]})
            os.truncate(self.staging / "metrics.jsonl", _read(checkpoint / SEALED)["metrics_bytes"])
            for newer in _checkpoints(self.staging):
                if _step(newer) > _step(checkpoint):
                    shutil.rmtree(newer)

    def _compare(self, before: dict, now: dict) -> None:
        start_again = "set it back, or start again with --fresh"
        if before["data"]["sha256"] != now["data"]["sha256"]:
            raise UserError(f"{self.staging} holds a stopped run on other data; {start_again}")
        for name, parent in now["parents"].items():
            was = before["parents"][name]
            if (parent["sha256"] or parent["path"]) != (was["sha256"] or was["path"]):
                raise UserError(f"{self.staging} holds a stopped run from another {name}; {start_again}")
        for name, value in now["settings"].items():
            was = before["settings"].get(name)
            if was == value or name.startswith(NO_MATTER):
                continue
            change = f"{self.staging} holds a stopped run with {name}: {was}, and now it is {value}"
            if name.startswith(DECIDES):
                raise UserError(f"{change}; {start_again}")
            if name.startswith(STAYS):
                now["settings"][name] = was
            outcome = "the old value stays" if name.startswith(STAYS) else "it goes on with the new value"
            print(f"warning: {change}; {outcome}. --fresh starts again", file=sys.stderr)

    def _lock(self) -> None:
        """A launcher that is killed may leave its trainers running; two in one folder would ruin both."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.lock = self.folder.with_name(self.folder.name + ".lock").open("w")  # freed when the process ends
        except OSError as error:
            raise UserError(f"cannot write to {self.folder} ({error.strerror}); set RUNS or output_dir") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process trains {self.folder}; wait for its end or end it") from error

    def _checkpoint(self) -> Path | None:
        """The last one that is complete."""
        return next((path for path in reversed(_checkpoints(self.staging)) if (path / SEALED).exists()), None)


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
        *older, newest = _checkpoints(self.path.parent)
        _write(newest / SEALED, record)
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


def check_splits(splits: dict[str, float], parents: dict[str, str]) -> None:
    """Refuse shares that are not those of the models that a run is made from: a prompt could be in two of its splits.

    Raises:
        UserError: a parent was trained on splits of other shares.
    """
    for name, path in parents.items():
        manifest = Path(path) / "manifest.json"
        others = _read(manifest).get("data", {}).get("splits") if manifest.exists() else splits
        if others != splits:
            raise UserError(f"the {name} {path} was trained with splits {others}, not {splits}; set them alike")


def _settings(args: TrainingArguments, *configs: Any) -> dict[str, Any]:
    merged = {"processes": PartialState().num_processes}
    for config in (*configs, args):
        merged |= config.to_dict() if hasattr(config, "to_dict") else asdict(config)
    return json.loads(json.dumps(merged, default=str))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _keep_model_only(checkpoint: Path) -> None:
    """Drop what only a resume would need, its seal first."""
    (checkpoint / SEALED).unlink(missing_ok=True)
    for pattern in ("*.pt", "*.pth", "*.bin"):
        for path in checkpoint.glob(pattern):
            path.unlink()
    for path in checkpoint.glob("global_step*"):  # DeepSpeed's part
        shutil.rmtree(path)


def _read(path: Path) -> dict:
    return json.loads(path.read_text())


def _write(path: Path, content: dict) -> None:
    """All of it or nothing, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
