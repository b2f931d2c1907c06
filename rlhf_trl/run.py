"""Run folders: everything a training run leaves behind, in place only when complete.

A run trains in `NAME.partial` beside its final folder and is renamed at the end, so that a folder with
the final name always holds a finished run. One that was killed goes on from its last complete checkpoint.
"""

import ctypes
import json
import os
import shutil
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from rlhf_trl.cli import resume_garbage_collection
from rlhf_trl.curves import plot_curves
from rlhf_trl.errors import UserError, work
from rlhf_trl.files import checkpoints, lock, read_json, step_of, swap, weights_hash, write_json
from rlhf_trl.frame_loading import TOKEN_OPTIONS
from rlhf_trl.frames import TODAY, Frame
from rlhf_trl.provenance import MANIFEST, STARTED, Task, read_manifest
from rlhf_trl.record import COSTS, SEALED, Recorder
from rlhf_trl.tokens import fingerprint

# In the staging folder, as STARTED, and written when what it tells of is complete
TRAINED = "trained.json"  # training is over and the model saved; what it cost

# What a change of an option means to a stopped run, by the first letters of its name: it cannot go on, as weights or
# steps are not what they were; the old value stays, as it is in the optimizer's and scheduler's state; nothing
# (NO_MATTER). After a change of any other option it goes on with the new value.
DECIDES = (
    *("model_revision", "lora_", "use_peft", "use_rslora", "use_dora", "load_in_", "dtype", "optim", "processes"),
    *("per_device_train", "gradient_accumulation", "num_train_epochs", "max_steps", "total_episodes"),
)
STAYS = ("learning_rate", "lr_scheduler", "warmup_", "weight_decay", "adam_")

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
        task: what is asked for.
        args: the trainer's arguments.
        configs: the other dataclasses that hold settings; one of them has `dataset`.
        frame: what the model reads and where a reply ends, which is saved with it.
        data: the rows trained on.

    Raises:
        UserError: a killed run is there that cannot go on with this data, these models or settings; or one that runs.
    """

    def __init__(self, task: Task, args: TrainingArguments, *configs: Any, frame: Frame, data: Dataset) -> None:
        resume_garbage_collection()
        self.task, self.frame, self.folder = task, frame, task.folder
        self.staging = self.folder.with_name(self.folder.name + ".partial")
        self.is_main, self.lock = PartialState().is_main_process, ExitStack()
        if self.is_main:
            settings = _settings(args, *configs)
            check_splits(settings["splits"], task)
            self.lock.enter_context(lock(self.folder))
            self._open(settings, data)
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
            self.lock.close()

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
        self.recorder.start(trainer, read_json(self.checkpoint / SEALED) if self.checkpoint else {})
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
            write_json(self.staging / TRAINED, record)

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
        started, trained = read_json(self.staging / STARTED), read_json(self.staging / TRAINED)
        (self.staging / "config.yaml").write_text(yaml.safe_dump(started.pop("settings"), sort_keys=False))
        plot_curves(self.staging)
        costs = {name: trained[name] for name in COSTS}
        write_json(self.staging / MANIFEST, self.task.manifest(weights_hash(self.staging), **started, train=costs))
        shutil.rmtree(self.staging / f"checkpoint-{trained['step']}", ignore_errors=True)  # is the result itself
        self.recorder.thin_out(checkpoints(self.staging))
        swap(self.staging, self.folder)
        for name in (STARTED, TRAINED, "training_args.bin"):  # without them, a kill before could not be gone on from
            (self.folder / name).unlink(missing_ok=True)
        self.lock.close()
        print(f"{self.folder.name}: done in {trained['seconds']:.0f} s; the result is in {self.folder}")

    def _open(self, settings: dict, data: Dataset) -> None:
        """Start a staging folder, or check what a killed run left and cut off what it did after its checkpoint."""
        now = {
            "seed": settings["seed"],
            "date_in_templates": TODAY.isoformat(),
            "data": {
                "dataset": settings["dataset"],
                "splits": settings["splits"],
                "rows": len(data),
                "sha256": fingerprint(data),
            },
            "processes": PartialState().num_processes,
            "options": self.task.options,
            "folder": str(self.folder),
            "made_of": self.task.sources(),
            "settings": settings,
            "resumed_at": [],  # steps
        }
        now["made_of"]["model"]["revision"] = settings["model_revision"]
        trained = (self.staging / TRAINED).exists()
        if self.task.fresh or not (self._checkpoint() or trained):
            if self.staging.exists():  # renamed first, so that half of it cannot be gone on from
                dropped = self.folder.with_name(self.folder.name + ".dropped")
                shutil.rmtree(dropped, ignore_errors=True)
                self.staging.rename(dropped)
                shutil.rmtree(dropped)
            self.staging.mkdir(parents=True)
            write_json(self.staging / STARTED, now)
            return
        before = read_json(self.staging / STARTED)
        self._compare(before, now)
        if not trained:
            checkpoint = self._checkpoint()
            write_json(self.staging / STARTED, now | {"resumed_at": [*before["resumed_at"], step_of(checkpoint)]})
            os.truncate(self.staging / "metrics.jsonl", read_json(checkpoint / SEALED)["metrics_bytes"])
            for newer in checkpoints(self.staging):
                if step_of(newer) > step_of(checkpoint):
                    shutil.rmtree(newer)

    def _compare(self, before: dict, now: dict) -> None:
        start_again = "set it back, or start again with FRESH=1 (by hand: --fresh)"
        if "made_of" not in before:
            raise UserError(f"{self.staging} was begun by an older version of rlhf-trl; {start_again}")
        if before["data"]["sha256"] != now["data"]["sha256"]:
            raise UserError(f"{self.staging} holds a stopped run on other data; {start_again}")
        for name in now["made_of"].keys() - {"dataset"}:
            if now["made_of"][name]["sha256"] != before["made_of"].get(name, {}).get("sha256"):
                raise UserError(f"{self.staging} holds a stopped run from another {name}; {start_again}")
        processes = "processes", before["processes"], now["processes"]
        for name, was, value in (processes, *self.task.changed_options(before)):
            if was == value:
                continue
            change = f"{self.staging} holds a stopped run with {name}: {was}, and now it is {value}"
            if name.startswith(DECIDES):
                raise UserError(f"{change}; {start_again}")
            if name.startswith(STAYS):
                now["settings"][name] = now["options"][name] = was
            outcome = "the old value stays" if name.startswith(STAYS) else "it goes on with the new value"
            print(f"warning: {change}; {outcome}. FRESH=1 (by hand: --fresh) starts again", file=sys.stderr)

    def _checkpoint(self) -> Path | None:
        """The last one that is complete."""
        return next((path for path in reversed(checkpoints(self.staging)) if (path / SEALED).exists()), None)


def check_splits(splits: dict[str, float], task: Task) -> None:
    """Refuse shares that are not those of the models that a run is made from: a prompt could be in two of its splits.

    Raises:
        UserError: a parent was trained on splits of other shares.
    """
    for name, source in task.made_of.items():
        others = (read_manifest(source["path"]) or {}).get("data", {}).get("splits", splits)
        if others != splits:
            raise UserError(
                f"the {name} {source['path']} was trained with splits {others}, not {splits}; set them alike"
            )


def _settings(args: TrainingArguments, *configs: Any) -> dict[str, Any]:
    merged = {"processes": PartialState().num_processes}
    for config in (*configs, args):
        merged |= config.to_dict() if hasattr(config, "to_dict") else asdict(config)
    return json.loads(json.dumps(merged, default=str))
