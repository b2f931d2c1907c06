"""Run folders: everything a training run leaves behind, in place only when complete.

A run trains in `NAME.partial` beside its final folder and is renamed at the end, so that a folder with
the final name always holds a finished run.
"""

import hashlib
import json
import platform
import resource
import shutil
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from rlhf_trl.data import DataConfig, fingerprint

PACKAGES = ("trl", "transformers", "peft", "accelerate", "datasets", "torch")


class Run:
    """One training run: opens the staging folder, records what happens, publishes the result.

    Opening one seeds every random generator and points `args.output_dir` at the staging folder.
    """

    def __init__(self, args: TrainingArguments, *configs: Any) -> None:
        self.folder = Path(args.output_dir)
        self.staging = self.folder.with_name(self.folder.name + ".partial")
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)
        args.output_dir = str(self.staging)
        self.configs = (*configs, args)
        self.seed = args.seed
        self.record = Recorder(self.staging / "metrics.jsonl")
        set_seed(args.seed)

    def train(self, trainer: Trainer) -> None:
        """Run the trainer's loop, measuring time, tokens and peak memory."""
        trainer.add_callback(self.record)
        tokens = TokenCounter(trainer.model)
        start = time.perf_counter()
        trainer.train()
        self.cost = {
            "seconds": round(time.perf_counter() - start, 1),
            "peak_memory_mb": round(peak_memory_mb()),
            "tokens": tokens.total(),
        }

    def publish(
        self,
        trainer: Trainer,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: DataConfig,
        dataset: Dataset,
        parents: dict[str, str],
    ) -> None:
        """Save model, tokenizer, resolved config, curves, card and manifest, and rename the folder.

        `parents` names the folders this run was made from (`{"model": ..., "reward_model": ...}`).
        """
        self._keep_models_of_checkpoints(trainer.state.global_step)
        trainer.create_model_card(model_name=self.folder.name)
        model.save_pretrained(self.staging)
        tokenizer.save_pretrained(self.staging)
        (self.staging / "config.yaml").write_text(self._resolved_config())
        plot_curves(self.staging)
        manifest = {
            "recipe": self.folder.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": self.seed,
            "versions": versions(),
            "machine": machine(),
            "data": {"dataset": config.dataset, "rows": len(dataset), "sha256": fingerprint(dataset)},
            "parents": {name: {"path": path, "sha256": weights_hash(path)} for name, path in parents.items()},
            "sha256": weights_hash(self.staging),
            "train": self.cost,
        }
        (self.staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self.staging.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        print(f"{self.folder.name}: done in {self.cost['seconds']:.0f} s; the result is in {self.folder}")

    def _keep_models_of_checkpoints(self, last: int) -> None:
        """Drop what only a resume would need; the last checkpoint is the result itself."""
        for checkpoint in self.staging.glob("checkpoint-*"):
            for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]:
                path.unlink()
        shutil.rmtree(self.staging / f"checkpoint-{last}", ignore_errors=True)

    def _resolved_config(self) -> str:
        merged: dict[str, Any] = {}
        for config in self.configs:
            merged |= config.to_dict() if hasattr(config, "to_dict") else asdict(config)
        merged["output_dir"] = str(self.folder)
        return yaml.safe_dump(json.loads(json.dumps(merged, default=str)), sort_keys=False)


class Recorder(TrainerCallback):
    """Appends what the trainer logs to `metrics.jsonl`, one JSON object a line, with its step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class TokenCounter:
    """Counts the unpadded tokens that pass through a model with gradients on."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._count: torch.Tensor | int = 0
        model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module, args, kwargs) -> None:
        if torch.is_grad_enabled() and kwargs.get("attention_mask") is not None:
            self._count = self._count + kwargs["attention_mask"].sum()  # stays on the device: no waiting

    def total(self) -> int:
        return int(self._count)


def read_metrics(folder: Path) -> list[dict]:
    """What a run logged, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def plot_curves(folder: Path) -> None:
    """Draw every metric of `metrics.jsonl` over the steps into `curves.png` and `curves.svg`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(folder)
    skip = {"step", "epoch", "episode", "eps", "total_flos"}
    names = sorted({name for row in rows for name, value in row.items() if isinstance(value, (int, float))} - skip)
    series = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return
    columns = min(4, len(series))
    lines = -(-len(series) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.2 * columns, 2.4 * lines), squeeze=False)
    for axis, (name, points) in zip(axes.flat, series.items(), strict=False):
        axis.plot(*zip(*points, strict=True), linewidth=1)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(series) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=120)
    figure.savefig(folder / "curves.svg")
    plt.close(figure)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """Processor and accelerator, without anything that names the host."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"system": platform.system(), "cpu": cpu, "threads": torch.get_num_threads(), "gpus": gpus}


def peak_memory_mb() -> float:
    """Peak memory in MB: of the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    scale = 2**20 if platform.system() == "Darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def weights_hash(folder: str | Path) -> str | None:
    """SHA-256 over a model folder's safetensors files; None for a model that is not a local folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
