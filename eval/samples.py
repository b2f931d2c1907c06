"""Sample every policy on the same held-out prompts with the same seeds, at temperature 1 and greedily.

    make samples PROFILE=gpt2
    python -m eval samples --config configs/gpt2.yaml --prompts 100

Writes to OUTPUT_DIR/samples one reply a line, with its token ids; the replies to one prompt stand in a row:
    NAME.jsonl                      each policy, and the untouched base model: `replies` a prompt, at temperature 1
    greedy/NAME.jsonl               the same models at temperature 0, one reply a prompt
    colder/REFERENCE-0.7.jsonl ...  the reference at each temperature of `colder`, `replies` a prompt
    checkpoints/NAME-STEP.jsonl     the checkpoints of a policy's run and its end ("final"), `replies` to each of the
                                    first `curve_prompts` prompts
    best_of.jsonl                   `best_of` replies of the reference to each of them
    probes/NAME.jsonl               one reply to each of the failure-mode probes
A run that was cut off goes on where it was; what was made from other weights or settings is made again.
"""

import functools
import gc
import hashlib
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import BaseStreamer
from trl.trainer.utils import pad

from eval.config import SamplesConfig
from eval.probes import load_probes
from rlhf_trl.batching import batches, combined_seed
from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError, work
from rlhf_trl.files import checkpoints, files_hash, read_json, read_jsonl, step_of, write_json, write_jsonl
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import TODAY, Frame, RowError
from rlhf_trl.hub import check_source, check_weights, lineage
from rlhf_trl.models import device, load_policy
from rlhf_trl.provenance import MANIFEST, Task, found, identity, read_manifest
from rlhf_trl.tokens import build_dataset, fingerprint


class Job(NamedTuple):
    """One file of replies: where it goes, whose they are, to what, how many a prompt and how drawn.

    `prompts` are dicts of `dialogue` (HH's format) and `subset`; temperature 0 is greedy decoding.
    """

    path: str
    model: str
    tokenizer: str
    prompts: list[dict]
    temperature: float = 1.0
    replies: int = 1


def main(task: Task, data_config: DataConfig, config: SamplesConfig) -> None:
    probes = load_probes(config.probes)
    models = [*config.folders.values(), _base(config)]
    for source in filter(None, models):
        check_source(source)
        check_weights(source)
    frame = frame_of(models[0], config.trust_remote_code)
    prompts = build_dataset(data_config, "eval", frame, config.seed)
    prompts = prompts.select(range(min(config.prompts, len(prompts))))

    folder = task.folder
    todo = jobs(
        config,
        list(prompts.select_columns(["subset", "dialogue"])),
        [{"subset": "", "dialogue": probe["prompt"]} for probe in probes],
    )
    state = PartialState()
    if state.is_main_process:
        _clear(folder, {job.path: _key(job, config) for job in todo})
    state.wait_for_everyone()
    for (source, tokenizer), group in itertools.groupby(todo, lambda job: (job.model, job.tokenizer)):
        missing = [job for job in group if not (folder / f"{job.path}.jsonl").exists()]
        if missing:
            _sample_all(source, tokenizer, missing, folder, config)
    if not state.is_main_process:
        return
    drawn = {name: getattr(config, name) for name in ("max_new_tokens", "replies", "colder", "dtype")}
    manifest = task.manifest(
        files_hash(folder),
        seed=config.seed,
        data={"dataset": data_config.dataset, "prompts": len(prompts), "sha256": fingerprint(prompts)},
        settings=drawn | {"temperature": 1.0},
        date_in_templates=TODAY.isoformat(),
        files={
            job.path: {"model": job.model, "tokenizer": job.tokenizer, "temperature": job.temperature} for job in todo
        },
    )
    write_json(folder / MANIFEST, manifest)
    print(f"Replies of {', '.join(job.path for job in todo if '/' not in job.path)} are in {folder}")


def _clear(folder: Path, keys: dict[str, str]) -> None:
    """Remove replies that other weights or settings gave, or that nobody asks for; one process does, before any
    starts."""
    known = read_json(folder / "keys.json") if (folder / "keys.json").exists() else {}
    if (folder / MANIFEST).exists():
        known = known if read_json(folder / MANIFEST).get("sha256") == files_hash(folder) else {}  # some are damaged
        (folder / MANIFEST).unlink()  # it says that all is there
    for name in known.keys() | keys.keys():
        if known.get(name) != keys.get(name):
            for path in (folder / f"{name}.jsonl", *_partials(folder / f"{name}.jsonl")):
                path.unlink(missing_ok=True)
    write_json(folder / "keys.json", keys)


def jobs(config: SamplesConfig, prompts: list[dict], probes: list[dict]) -> list[Job]:
    """All replies that an evaluation needs, model by model; the base model uses the reference's tokenizer."""
    models = config.folders
    reference, folder = next(iter(models.items()))
    base = _base(config)
    sources = ({"base": (base, folder)} if base else {}) | {name: (model, model) for name, model in models.items()}
    first = prompts[: config.curve_prompts]
    steps = {name: checkpoints(model) for name, model in models.items()}
    drawn = functools.partial(Job, replies=config.replies)
    result = []
    for name, source in sources.items():
        result += [drawn(name, *source, prompts), Job(f"greedy/{name}", *source, prompts, temperature=0.0)]
        if probes:
            result.append(Job(f"probes/{name}", *source, probes))
        if name == reference:
            result += [drawn(f"colder/{name}-{t:g}", *source, prompts, t) for t in config.colder]
            if first:
                result.append(Job("best_of", *source, first, replies=config.best_of))
        # Start and end of the curves are drawn as the checkpoints are, so that no point has luck of its own
        if first and any(steps.values()) and (name == reference or steps.get(name)):
            result.append(drawn(f"checkpoints/{name}-final", *source, first))
            for path in steps[name]:
                result.append(drawn(f"checkpoints/{name}-{step_of(path)}", str(path), models[name], first))
    return result


def _base(config: SamplesConfig) -> str | None:
    """What a profile's reference was trained from, as its manifest says, unless another base is configured."""
    name, _, folder = config.policies[0].partition("=")
    manifest = read_manifest(Path(config.output_dir) / name)
    if config.base or folder or manifest is None:
        return config.base
    base = manifest["made_of"]["model"]
    if base.get("revision") in (None, "main"):
        return str(found(base["path"], manifest, Path(config.output_dir) / name))
    return snapshot_download(base["path"], revision=base["revision"], local_files_only=True)


@torch.no_grad()
@work
def sample(
    model: PreTrainedModel,
    frame: Frame,
    prompt_ids: list[list[int]],
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """One completion a prompt from softmax(logits / temperature), nothing cut off; at temperature 0 the likeliest
    token each time. A streamer gets the tokens of a single prompt's as they come.

    Returns token ids, in the order of the prompts; one of the frame's ends is the last of a completion that finished.
    """
    torch.manual_seed(seed)
    draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(**(draw if temperature else {"do_sample": False}), max_new_tokens=max_new_tokens)
    ends = frame.generation_config()
    settings.eos_token_id, settings.pad_token_id = ends.eos_token_id, ends.pad_token_id
    prompts = [torch.tensor(ids) for ids in prompt_ids]
    ids = pad(prompts, padding_value=settings.pad_token_id, padding_side="left").to(model.device)
    mask = pad([torch.ones_like(row) for row in prompts], padding_value=0, padding_side="left").to(model.device)
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, streamer=streamer)
    return [frame.cut(row) for row in output[:, ids.shape[1] :].tolist()]


def _sample_all(source: str, tokenizer_source: str, todo: list[Job], folder: Path, config: SamplesConfig) -> None:
    """Write the files of one model, which is loaded once for all of them."""
    frame = frame_of(tokenizer_source, config.trust_remote_code)
    model = load_policy(source, frame.tokenizer, config.dtype, config.trust_remote_code).to(device())
    for job in todo:
        _run(job, model, frame, folder / f"{job.path}.jsonl", config)
    del model
    gc.collect()


def _run(job: Job, model: PreTrainedModel, frame: Frame, path: Path, config: SamplesConfig) -> None:
    """Sample batch by batch, each process its share. Each batch has a seed of its own, so that neither a kill nor
    the number of processes changes what is drawn."""
    try:
        prompts = [frame.prompt(prompt["dialogue"]) for prompt in job.prompts]
    except RowError as error:
        raise UserError(f"{job.tokenizer} cannot be asked all prompts (one is {error}); leave it out") from error
    prompt_ids = [frame.prompt_ids(prompt) for prompt in prompts]
    path.parent.mkdir(parents=True, exist_ok=True)
    state = PartialState()
    done = {row["index"] for part in _partials(path) for row in read_jsonl(part)}
    state.wait_for_everyone()
    mine = path.with_name(f"{path.name}.partial-{state.process_index}")
    write_jsonl(mine, read_jsonl(mine))  # without the half of a line a kill may have left
    with mine.open("a", encoding="utf-8") as file:
        lengths = [len(ids) for ids in prompt_ids for _ in range(job.replies)]
        shares = batches(lengths, config.batch_size, f"{job.path}: sampling")
        for number, batch in enumerate(shares):
            if done.issuperset(batch) or number % state.num_processes != state.process_index:
                continue
            ids = [prompt_ids[i // job.replies] for i in batch]
            seed = combined_seed(config.seed, batch[0])
            completions = sample(model, frame, ids, config.max_new_tokens, seed, job.temperature)
            for i, completion in zip(batch, completions, strict=True):
                prompt, reply = divmod(i, job.replies)
                row = {
                    "index": i,
                    "reply": reply,
                    **job.prompts[prompt],
                    "prompt": prompts[prompt],
                    "completion": frame.text(completion),
                    "completion_ids": completion,
                    "finished": frame.finished(completion),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        rows = {row["index"]: row for part in _partials(path) for row in read_jsonl(part)}
        write_jsonl(path, [rows[i] for i in sorted(rows)])
        for part in _partials(path):
            part.unlink()


def _key(job: Job, config: SamplesConfig) -> str:
    weights = [identity("model", name) or [name, revision] for name, revision in lineage(job.model)]
    frame = frame_of(job.tokenizer, config.trust_remote_code)
    read = (frame.tokenizer.chat_template, len(frame.tokenizer), sorted(frame.ends))
    drawn = (job.prompts, job.temperature, job.replies, config.max_new_tokens)
    settings = (*drawn, *read, weights, config.batch_size, config.dtype, config.seed)
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


@functools.cache
def frame_of(source: str, trust_remote_code: bool) -> Frame:
    """The frame of a policy, found once in a command."""
    return load_frame(source, trust_remote_code=trust_remote_code)


def _partials(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}.partial-*"))
