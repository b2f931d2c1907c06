"""Sample every policy on the same held-out prompts, at temperature 1 with the same seeds.

    make samples PROFILE=gpt2
    python -m eval samples --config configs/gpt2/eval.yaml --prompts 100

Writes to OUTPUT_DIR/samples one reply a line, with its token ids and its log-probability:
    NAME.jsonl                   each policy, and the untouched base model
    checkpoints/NAME-STEP.jsonl  the checkpoints of a policy's run and its end, on the first `curve_prompts` prompts
    best_of.jsonl                `best_of` replies of the reference to each of them
    probes/NAME.jsonl            replies to the failure-mode probes
A run that was cut off goes on where it was; what was made from other weights or settings is made again.
"""

import functools
import gc
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from eval.config import EvalConfig, JudgeConfig
from eval.files import read_jsonl, write_json, write_jsonl
from eval.probes import load_probes
from rlhf_trl.batching import batches, combined_seed
from rlhf_trl.config import DataConfig
from rlhf_trl.data import build_dataset, fingerprint, render_prompt
from rlhf_trl.hub import check_source
from rlhf_trl.measure import machine, versions
from rlhf_trl.models import device, load_policy
from rlhf_trl.runs import weights_hash


class Job(NamedTuple):
    """One file of replies: where it goes, whose they are, and to what (dialogues in HH's format)."""

    path: str
    model: str
    tokenizer: str
    dialogues: list[str]


def main(data_config: DataConfig, config: EvalConfig, _: JudgeConfig) -> None:
    probes = load_probes(config.probes)
    models = [*config.folders.values(), _base(config)]
    for source in filter(None, models):
        check_source(source)
    prompts = build_dataset(data_config, "eval", AutoTokenizer.from_pretrained(models[0]), config.seed)
    prompts = prompts.select(range(min(config.prompts, len(prompts))))

    folder = Path(config.output_dir) / "samples"
    todo = jobs(config, list(prompts["dialogue"]), [probe["prompt"] for probe in probes])
    state = PartialState()
    if state.is_main_process:
        _clear(folder, {job.path: _key(job, config) for job in todo})
    state.wait_for_everyone()
    for job in todo:
        if not (folder / f"{job.path}.jsonl").exists():
            _run(job, folder / f"{job.path}.jsonl", config)
    if not state.is_main_process:
        return
    manifest = {
        "seed": config.seed,
        "data": {"dataset": data_config.dataset, "prompts": len(prompts), "sha256": fingerprint(prompts)},
        "settings": {"max_new_tokens": config.max_new_tokens, "temperature": 1.0, "dtype": config.dtype},
        "versions": versions(),
        "machine": machine(),
        "files": {job.path: {"model": job.model, "tokenizer": job.tokenizer} for job in todo},
    }
    write_json(folder / "manifest.json", manifest)
    print(f"Replies of {', '.join(job.path for job in todo if '/' not in job.path)} are in {folder}")


def _clear(folder: Path, keys: dict[str, str]) -> None:
    """Remove replies that other weights or settings gave; one process does, before any starts."""
    known = json.loads((folder / "keys.json").read_text()) if (folder / "keys.json").exists() else {}
    for name in keys:
        if known.get(name) != keys[name]:
            for path in (folder / f"{name}.jsonl", *_partials(folder / f"{name}.jsonl")):
                path.unlink(missing_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # it says that all is there
    write_json(folder / "keys.json", keys)


def jobs(config: EvalConfig, dialogues: list[str], probes: list[str]) -> list[Job]:
    """All replies that an evaluation needs; the base model uses the reference's tokenizer."""
    models = config.folders
    reference = next(iter(models.values()))
    base = _base(config)
    sources = ({"base": (base, reference)} if base else {}) | {
        name: (folder, folder) for name, folder in models.items()
    }
    result = [Job(name, *source, dialogues) for name, source in sources.items()]
    if probes:
        result += [Job(f"probes/{name}", *source, probes) for name, source in sources.items()]
    first = dialogues[: config.curve_prompts]
    if first:
        replicated = [dialogue for dialogue in first for _ in range(config.best_of)]
        result.append(Job("best_of", reference, reference, replicated))
        # Start and end of the curves are drawn as the checkpoints are, so that no point has luck of its own
        paths = {name: sorted(Path(folder).glob("checkpoint-*"), key=_step) for name, folder in models.items()}
        for name, folder in models.items() if any(paths.values()) else ():
            if paths[name] or folder == reference:
                result.append(Job(f"checkpoints/{name}-final", folder, folder, first))
            for path in paths[name]:
                result.append(Job(f"checkpoints/{name}-{_step(path)}", str(path), folder, first))
    return result


def _base(config: EvalConfig) -> str | None:
    """What a profile's reference was trained from, as its manifest says, unless another base is configured."""
    name, _, folder = config.policies[0].partition("=")
    manifest = Path(config.output_dir) / name / "manifest.json"
    if config.base or folder or not manifest.exists():
        return config.base
    return json.loads(manifest.read_text())["parents"]["model"]["path"]


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    max_new_tokens: int,
    seed: int,
) -> list[list[int]]:
    """One completion a prompt from the model's own distribution (temperature 1, nothing cut off).

    Returns token ids, in the order of the prompts; eos is the last of a completion that finished.
    """
    torch.manual_seed(seed)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
    )
    reverse = [torch.tensor(ids[::-1]) for ids in prompt_ids]  # flipped twice, padding ends up on the left
    ids = pad_sequence(reverse, batch_first=True, padding_value=pad).flip(1).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in reverse], batch_first=True).flip(1).to(model.device)
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    completions = output[:, ids.shape[1] :].tolist()
    return [
        row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row for row in completions
    ]


@torch.no_grad()
def log_probabilities(
    model: PreTrainedModel, prompt_ids: list[list[int]], completion_ids: list[list[int]]
) -> list[float]:
    """log pi(completion | prompt) in nats, summed over the completion's tokens; one a prompt."""
    ids = [torch.tensor(prompt + completion) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    start = torch.tensor([len(prompt) for prompt in prompt_ids]).unsqueeze(1)
    end = torch.tensor([len(row) for row in ids]).unsqueeze(1)
    ids = pad_sequence(ids, batch_first=True)
    position = torch.arange(ids.shape[1])
    logits = model(input_ids=ids.to(model.device), attention_mask=(position < end).to(model.device)).logits
    logps = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None].to(model.device)).squeeze(-1).cpu()
    of_completion = (position >= start) & (position < end)
    return (logps * of_completion[:, 1:]).sum(1).tolist()


def _run(job: Job, path: Path, config: EvalConfig) -> None:
    """Sample batch by batch, each process its share. Each batch has a seed of its own, so that neither a kill nor
    the number of processes changes what is drawn."""
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    model = load_policy(job.model, tokenizer, config.dtype).to(device())
    prompts = [render_prompt(dialogue, tokenizer) for dialogue in job.dialogues]
    prompt_ids = tokenizer(prompts)["input_ids"]
    path.parent.mkdir(parents=True, exist_ok=True)
    state = PartialState()
    done = {row["index"] for part in _partials(path) for row in read_jsonl(part)}
    state.wait_for_everyone()
    mine = path.with_name(f"{path.name}.partial-{state.process_index}")
    write_jsonl(mine, read_jsonl(mine))  # without the half of a line a kill may have left
    with mine.open("a", encoding="utf-8") as file:
        shares = batches([len(ids) for ids in prompt_ids], config.batch_size, f"{job.path}: sampling")
        for number, batch in enumerate(shares):
            if done.issuperset(batch) or number % state.num_processes != state.process_index:
                continue
            ids = [prompt_ids[i] for i in batch]
            completions = sample(model, tokenizer, ids, config.max_new_tokens, combined_seed(config.seed, batch[0]))
            logps = log_probabilities(model, ids, completions)
            texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
            for i, completion, logp, text in zip(batch, completions, logps, texts, strict=True):
                row = {
                    "index": i,
                    "dialogue": job.dialogues[i],
                    "prompt": prompts[i],
                    "completion": text,
                    "completion_ids": completion,
                    "finished": completion[-1] == tokenizer.eos_token_id,
                    "logp": logp,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        rows = {row["index"]: row for part in _partials(path) for row in read_jsonl(part)}
        write_jsonl(path, [rows[i] for i in sorted(rows)])
        for part in _partials(path):
            part.unlink()
    del model
    gc.collect()


def _key(job: Job, config: EvalConfig) -> str:
    weights = _weights(job.model) or job.model
    settings = (job.dialogues, weights, config.max_new_tokens, config.batch_size, config.dtype, config.seed)
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


_weights = functools.cache(weights_hash)  # the same 16 GB would be read again for every file


def _partials(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}.partial-*"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
