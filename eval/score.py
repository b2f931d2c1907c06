"""Score replies, sampling first what is missing: reward model, true rule if there is one, KL from the reference.

    make score PROFILE=gpt2
    python -m eval score --config configs/gpt2/eval.yaml

Writes OUTPUT_DIR/scores, one file for each of OUTPUT_DIR/samples. To each reply it adds `proxy` (the reward
model's standardised score), `gold` (the true rule's), `log_ratio` (log pi - log pi_ref, whose mean is the
sequence KL), null where there is none, and to replies to probes `group` and `passed`.
"""

import functools
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from eval import samples
from eval.config import GOLD_RULES, EvalConfig, JudgeConfig
from eval.files import read_jsonl, replaced, write_json, write_jsonl
from eval.probes import load_probes, passes
from rlhf_trl.batching import batches
from rlhf_trl.config import DataConfig
from rlhf_trl.data import load_tokenizer, render_prompt
from rlhf_trl.models import device, load_policy
from rlhf_trl.rewards import check_reward_model, load_reward_model, score
from rlhf_trl.runs import weights_hash


def main(data_config: DataConfig, config: EvalConfig, judge: JudgeConfig) -> None:
    probes = load_probes(config.probes)
    root = Path(config.output_dir)
    check_reward_model(config.reward_model_folder)
    samples.main(data_config, config, judge)
    PartialState().wait_for_everyone()  # the main process says last what was sampled
    sampled = json.loads((root / "samples" / "manifest.json").read_text())
    tokenizers = {name: file["tokenizer"] for name, file in sampled["files"].items()}
    files = {name: read_jsonl(root / "samples" / f"{name}.jsonl") for name in tokenizers}

    add_proxy(files, tokenizers, config)
    add_log_ratio(files, tokenizers, config)
    if not PartialState().is_main_process:
        return
    gold = GOLD_RULES.get(config.gold_rule)
    parents = {"reward_model": config.reward_model_folder, "reference": next(iter(config.folders.values()))}
    with replaced(root / "scores") as staging:
        for name, rows in files.items():
            for row in rows:
                row["gold"] = gold(row["dialogue"], row["completion"]) if gold else None
                if name.startswith("probes/"):
                    probe = probes[row["index"]]
                    row |= {"group": probe["group"], "passed": passes(probe, row["completion"])}
                row["completion_tokens"] = len(row.pop("completion_ids"))
            write_jsonl(staging / f"{name}.jsonl", rows)
        manifest = {role: {"path": path, "sha256": weights_hash(path)} for role, path in parents.items()}
        write_json(staging / "manifest.json", manifest)
    print(f"Scores of {', '.join(name for name in files if '/' not in name)} are in {root / 'scores'}")


def add_proxy(files: dict[str, list[dict]], tokenizers: dict[str, str], config: EvalConfig) -> None:
    """Add `proxy`. The sampled ids are scored as they are; text is tokenized again only for another vocabulary."""
    folder = config.reward_model_folder
    model = load_reward_model(folder, dtype=config.dtype).to(device())
    tokenizer = load_tokenizer(folder)
    for name, rows in files.items():
        same = _same_tokens(tokenizers[name], tokenizer)
        sequences = [
            tokenizer(render_prompt(row["dialogue"], tokenizer))["input_ids"]
            + (row["completion_ids"] if same else completion_ids(row, tokenizer))
            for row in rows
        ]
        scores = functools.partial(score, model, batch_size=config.batch_size, progress=f"{name}: reward model")
        for row, value in zip(rows, shared_out(sequences, scores), strict=True):
            row["proxy"] = value.item()
    del model
    gc.collect()


def add_log_ratio(files: dict[str, list[dict]], tokenizers: dict[str, str], config: EvalConfig) -> None:
    """Add `log_ratio` where the policy and the reference share a vocabulary and the KL is asked for."""
    reference = next(iter(config.folders.values()))
    tokenizer = AutoTokenizer.from_pretrained(reference)
    model = load_policy(reference, tokenizer, config.dtype).to(device())
    for name, rows in files.items():
        for row in rows:
            row["log_ratio"] = None
        if name == "best_of" or name.startswith("probes/") or not _same_tokens(tokenizers[name], tokenizer):
            continue
        logps = functools.partial(log_probabilities, model, tokenizer, config.batch_size, f"{name}: KL")
        for row, logp in zip(rows, shared_out(rows, logps), strict=True):
            row["log_ratio"] = row["logp"] - logp
    del model
    gc.collect()


def log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, progress: str, rows: list[dict]
) -> list[float]:
    """log pi(completion | prompt) of replies under another model than the one they come from, in nats."""
    prompt_ids = tokenizer([row["prompt"] for row in rows])["input_ids"] if rows else []
    logps = [0.0] * len(rows)
    lengths = [len(ids) + len(row["completion_ids"]) for ids, row in zip(prompt_ids, rows, strict=True)]
    for batch in batches(lengths, batch_size, progress, model.device):
        ids = [prompt_ids[i] for i in batch], [rows[i]["completion_ids"] for i in batch]
        for i, logp in zip(batch, samples.log_probabilities(model, *ids), strict=True):
            logps[i] = logp
    return logps


def shared_out(items: list, compute: Callable[[list], Sequence]) -> list:
    """`compute` of the items, one value each: every process does its share and gets all."""
    state = PartialState()
    mine = compute(items[state.process_index :: state.num_processes])
    values = [None] * len(items)
    for process, share in enumerate(gather_object([mine])):
        values[process :: state.num_processes] = share
    return values


_tokenizer = functools.cache(AutoTokenizer.from_pretrained)


def _same_tokens(source: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    other = _tokenizer(source)
    return other.get_vocab() == tokenizer.get_vocab() and other.chat_template == tokenizer.chat_template


def completion_ids(row: dict, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A reply in another vocabulary, as the reward model's training had it: HH's replies begin with a space."""
    text = row["completion"].strip() if tokenizer.chat_template else " " + row["completion"].strip()
    return tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * row["finished"]
