"""What is measured of a run and of the machine under it."""

import platform
import re
import resource
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch.optim.optimizer import register_optimizer_step_post_hook

PACKAGES = ("trl", "transformers", "peft", "accelerate", "datasets", "torch")


class TokenCounter:
    """Counts the unpadded tokens that pass through a model with gradients on."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._count: torch.Tensor | int = 0
        model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module, args, kwargs) -> None:
        if torch.is_grad_enabled() and kwargs.get("attention_mask") is not None:
            self._count = self._count + kwargs["attention_mask"].sum()  # stays on the device: no waiting

    def total(self) -> int:
        """The sum over all processes, each of which must ask."""
        return int(gather(torch.tensor([int(self._count)], device=PartialState().device)).sum())


class StepCounter:
    """Counts the steps that optimizers take from now on, and adds up their learning rates.

    A trainer's own step is another thing in each: one of PPO's is a batch of rollouts, with several optimizer steps.
    """

    def __init__(self) -> None:
        self.count, self.learning_rate_sum = 0, 0.0
        register_optimizer_step_post_hook(self._add)

    def _add(self, optimizer: torch.optim.Optimizer, *_) -> None:
        self.count += 1
        self.learning_rate_sum += optimizer.param_groups[0]["lr"]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """Processor and accelerator, without anything that names the host."""
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(r"model name\s*:\s*(.*\S)", cpuinfo.read_text())
    cpu = found[1] if found else platform.processor() or platform.machine()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"system": platform.system(), "cpu": cpu, "threads": torch.get_num_threads(), "gpus": gpus}


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take: of the GPU, or of the host for any other device."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for new tensors
    return torch.cuda.mem_get_info(device)[0] + cached


def peak_memory_mb() -> float:
    """Peak memory in MB: of the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    found = status.exists() and re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
    if found:  # getrusage's figure would begin at what the process that started this one had
        return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)
