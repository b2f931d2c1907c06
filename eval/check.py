"""Find out, before anything trains, whether every step of a profile can work here and how much memory it takes.

    make check PROFILE=gpt2
    python -m eval check --profile configs/gpt2.yaml

All that is wrong is named at once: configs, packages, models, data, batches, judge, memory and disk. A model that is
still to be trained is taken to be like the one it starts from. All is about training in one process: what sharding by
ZeRO or FSDP saves is not counted, nor the memory that the evaluation takes. "Tight" is what needs more than four fifths
of the memory: the estimate can be that far off.
"""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from datasets import Dataset
from transformers import TrainingArguments
from trl import ModelConfig

from eval.config import OPENAI_URL, JudgeConfig
from eval.judge import choose_pairs, read_key, read_template
from eval.probes import load_probes
from rlhf_trl import grpo, ppo
from rlhf_trl.cli import fill, read_task
from rlhf_trl.config import RECIPES, DataConfig
from rlhf_trl.errors import UserError, user_message
from rlhf_trl.frame_loading import TOKEN_OPTIONS, start_frame
from rlhf_trl.frames import Frame
from rlhf_trl.hub import check_source
from rlhf_trl.measure import free_memory
from rlhf_trl.memory import MemoryNeed, estimate
from rlhf_trl.models import check_architecture, check_context, read_config
from rlhf_trl.outline import load
from rlhf_trl.pipeline import Graph, GraphConfig, run
from rlhf_trl.profiles import WORLD
from rlhf_trl.rewards import check_fit, check_scale, load_scale_pairs, reward_frame
from rlhf_trl.splits import load_split
from rlhf_trl.tokens import build_dataset

COLUMNS = ("parameters", "trained", "libraries", "weights", "optimizer", "activations", "total", "there", "verdict")
ROW = "{:7}" + len(COLUMNS) * "{:>12}"
GB = 10**9


@dataclass
class CheckedRecipe:
    """A recipe's settings, and what is found out about it."""

    name: str
    data: DataConfig
    model: ModelConfig
    args: TrainingArguments
    token_options: dict[str, str]
    reward_model: str | None
    frame: Frame | None = None
    rows: Dataset | None = None
    estimate: MemoryNeed | None = None

    @property
    def response(self) -> int | None:
        """Tokens of the longest reply that the recipe samples; None if it samples none."""
        return getattr(self.args, "response_length", getattr(self.args, "max_completion_length", None))

    def needs(self, libraries: int) -> MemoryNeed:
        """The memory that the recipe takes, on these rows; `libraries` is that of a process without it, in bytes."""
        config = read_config(self.model).get_text_config()
        config.vocab_size = max(config.vocab_size, len(self.frame.tokenizer))
        longest = max(map(len, self.rows["prompt_ids"])) if self.response else max(self.rows["length"])
        process = 0 if self.args.device.type == "cuda" else libraries
        return estimate(self.name, config, self.model, self.args, longest, process)

    def memory(self, libraries: int) -> float:
        """Bytes that are there for it."""
        if self.args.device.type != "cuda":
            return free_memory(self.args.device) + libraries
        vllm = getattr(self.args, "use_vllm", False) and self.args.vllm_mode == "colocate"
        taken = self.args.vllm_gpu_memory_utilization * torch.cuda.mem_get_info()[1] if vllm else 0
        return free_memory(self.args.device) - taken


class Findings(dict[str, list[str]]):
    """What is wrong, and with which steps."""

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Take down the error that ends the block, if one does: ours, or what a library says of a model or a file."""
        try:
            yield
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            steps = self.setdefault(message, [])
            steps += [] if step in steps else [step]


def main(config: GraphConfig) -> None:
    findings = Findings()
    graph = Graph(config)
    if WORLD in graph.profile:
        run(graph, ["demo-data"])
    steps = read_configs(graph, findings)
    for step in steps:
        check_models(step, graph, findings)
        check_data(step, findings)
    check_evaluation(graph, steps, findings)
    check_memory(steps, findings)
    check_disk(graph, steps, findings)
    for message, names in findings.items():
        print(f"{', '.join(names)}: {message}")
    if findings:
        raise UserError(f"{len(findings)} of the checks failed; what is wrong, and what to do, stands above")
    print(f"{graph.folder.name} can run on this machine")


def read_configs(graph: Graph, findings: Findings) -> list[CheckedRecipe]:
    """The recipes whose settings are sound."""
    steps, sft = [], str(graph.folder / "sft")
    for name, recipe in RECIPES.items():
        with findings.of(name):
            classes = [load(part) if isinstance(part, str) else part for part in recipe.configs]  # folders come later
            (data, model, *others, args), _ = fill(None, classes, graph.arguments(name), name)
            if any(word in args.optim for word in ("8bit", "paged")) and find_spec("bitsandbytes") is None:
                raise UserError("this optim needs bitsandbytes; pip install bitsandbytes or choose another")
            paths = (getattr(part, "reward_model_path", None) for part in (*others, args))
            reward_model = next(filter(None, paths), None)
            token_options = {option: getattr(args, option) for option in TOKEN_OPTIONS if getattr(args, option, None)}
            steps.append(CheckedRecipe(name, data, model, args, token_options, reward_model))
    base = next((step for step in steps if step.name == "sft"), None)
    for step in steps:
        if step.model.model_name_or_path == sft and not Path(sft).exists():
            step.model.model_name_or_path = base and base.model.model_name_or_path
            step.model.model_revision = base and base.model.model_revision
            step.token_options = (base.token_options if base else {}) | step.token_options
    return steps


def check_models(step: CheckedRecipe, graph: Graph, findings: Findings) -> None:
    """That the models can be had, that prompts and replies fit them, and that the device can compute with them."""
    model, reward_model = step.model, step.reward_model
    with findings.of(step.name):
        if model.model_name_or_path:
            check_source(model.model_name_or_path)
            with findings.of(step.name):
                check_context(model, step.data.max_prompt_tokens, step.response or step.data.max_completion_tokens)
            check_architecture(model)
            step.frame = start_frame(model, SimpleNamespace(**step.token_options))
    with findings.of(step.name):
        if reward_model and (reward_model != str(graph.folder / "reward") or Path(reward_model).exists()):
            with redirect_stdout(io.StringIO()):
                check_scale(reward_model, step.data, step.args.seed, model.trust_remote_code)
            if step.frame:
                check_fit(step.frame, reward_frame(reward_model, model.trust_remote_code), reward_model)
    with findings.of(step.name):
        on_gpu = step.args.device.type == "cuda"
        if on_gpu and model.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError("this GPU cannot compute in bfloat16; set dtype: float32 and no quantization")


def check_data(step: CheckedRecipe, findings: Findings) -> None:
    """That the recipe's splits hold rows within its limits, and enough of them for its batches."""
    for split in RECIPES[step.name].splits:
        with findings.of(step.name):
            rows = read_split(step.data, split, step.frame, step.args.seed)
            step.rows = step.rows or rows
    check_batches = {"ppo": ppo.check_batches, "grpo": grpo.check_batches}.get(step.name)
    if check_batches:
        with findings.of(step.name):
            check_batches(step.args, len(step.rows) if step.rows else sys.maxsize)


def read_split(data: DataConfig, split: str, frame: Frame | None, seed: int) -> Dataset | None:
    """The rows of a split; without a frame, only whether there are any."""
    if frame is None:
        load_split(data, split)
        return None
    with redirect_stdout(io.StringIO()):
        if split == "validation":
            return load_scale_pairs(data, frame, seed)
        return build_dataset(data, split, frame, seed)


def check_evaluation(graph: Graph, steps: list[CheckedRecipe], findings: Findings) -> None:
    """That there are prompts that the model can read, probes and templates as named, and somebody to judge."""
    base = next((step for step in steps if step.frame), None)
    parts = {}
    for name in ("data", "eval-reward", "samples", "score", "judge", "report"):
        with findings.of(name):
            parts[name] = read_task(name, graph.arguments(name))[1:]
    if "samples" in parts:
        data, config = parts["samples"]
        for check in (
            lambda: read_split(data, "eval", base and base.frame, config.seed),
            lambda: base and check_context(base.model, data.max_prompt_tokens, config.max_new_tokens),
            lambda: load_probes(config.probes),
        ):
            with findings.of("samples"):
                check()
    if "judge" in parts:
        (judge,) = parts["judge"]
        rule = parts["score"][-1].gold_rule if "score" in parts else None
        for check in (
            lambda: read_template(judge.judge_template),
            lambda: choose_pairs(list(judge.folders), judge.judge_pairs),
            lambda: check_judge(judge, rule),
        ):
            with findings.of("judge"):
                check()


def check_judge(judge: JudgeConfig, gold_rule: str | None) -> None:
    if judge.judge == "gold" and gold_rule is None:
        raise UserError("judge gold needs a gold_rule, which this profile has not; choose openai or none")
    if judge.judge == "openai" and not read_key() and judge.base_url == OPENAI_URL:
        raise UserError("nobody can judge; set OPENAI_API_KEY, or base_url to a server of yours, or judge: none")


def check_memory(steps: list[CheckedRecipe], findings: Findings) -> None:
    """That each recipe fits the memory of its device; prints what it takes."""
    libraries = psutil.Process().memory_info().rss
    steps = [step for step in steps if step.rows is not None]
    if steps:
        print(ROW.format("in GB", *COLUMNS))
    for step in steps:
        need = None
        with findings.of(step.name):
            try:
                need = step.needs(libraries)
            except RuntimeError as error:  # torch's, for a model whose code asks for values where there are only shapes
                print(ROW.format(step.name, *["?"] * len(COLUMNS)), error)
        if need is None:
            continue
        there = step.memory(libraries)
        parts = (need.process, need.weights, need.gradients + need.optimizer, need.activations, need.total, there)
        counts = (f"{count / 1e6:.1f}M" for count in (need.parameters, need.trainable))
        verdict = "fits" if need.total <= 0.8 * there else "tight" if need.total <= there else "too much"
        print(ROW.format(step.name, *counts, *(f"{part / GB:.2f}" for part in parts), verdict))
        step.estimate = need
        with findings.of(step.name):
            if need.total > there:
                remedy = "lower per_device_train_batch_size, or the limits of prompts and replies"
                if need.total - need.activations > there:
                    remedy = "take a smaller model, or set use_peft: true and load_in_4bit: true"
                raise UserError(f"needs {need.total / GB:.1f} GB of memory, and {there / GB:.1f} are there; {remedy}")


def check_disk(graph: Graph, steps: list[CheckedRecipe], findings: Findings) -> None:
    """That the disk holds the runs with their checkpoints."""
    need = sum(map(run_size, (step for step in steps if step.estimate)))
    folder = graph.folder.absolute()
    free = shutil.disk_usage(next(parent for parent in [folder, *folder.parents] if parent.exists())).free
    with findings.of("all"):
        if need > free:
            message = f"the runs need {need / GB:.1f} GB of disk, and {free / GB:.1f} are free; set RUNS elsewhere"
            raise UserError(message)


def run_size(step: CheckedRecipe) -> int:
    """Bytes of a run folder: the result, checkpoints of what is trained, and the newest one's optimizer."""
    args, need = step.args, step.estimate
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    rows = args.num_train_epochs * len(step.rows) * getattr(args, "num_generations", 1)
    steps = args.max_steps if args.max_steps > 0 else (getattr(args, "total_episodes", None) or rows) / batch
    checkpoints = 1 / args.save_steps if args.save_steps < 1 else steps // args.save_steps
    checkpoints = 0 if args.save_strategy == "no" else min(checkpoints, args.save_total_limit or checkpoints)
    merged = step.name in ("sft", "reward")
    result = need.parameters * (2 if "float16" in str(step.model.dtype) else 4) if merged else need.gradients
    return round(result + checkpoints * need.gradients + need.optimizer)
