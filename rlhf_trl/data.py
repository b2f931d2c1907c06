"""HH-RLHF preference pairs: reading, the row contract, prompt-disjoint splits and their tokens.

The layout is that of the hub dataset `Anthropic/hh-rlhf` (Bai et al. 2022, arXiv 2204.05862):
`[SUBSET/]train.jsonl[.gz]` and `[SUBSET/]test.jsonl[.gz]`, each line an object with the two whole
dialogues `chosen` and `rejected`.
"""

import gzip
import hashlib
import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import datasets
from accelerate import PartialState
from datasets import Dataset
from datasets.fingerprint import Hasher
from huggingface_hub import snapshot_download

from rlhf_trl import frames
from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError, check_writable
from rlhf_trl.files import file_hash
from rlhf_trl.frames import REPLY, TURN, Frame
from rlhf_trl.hub import check_reachable

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which nothing can encode
TOO_LONG = ("prompt too long", "reply too long")
UNFIT = (*TOO_LONG, *frames.REASONS)  # why a row of a split cannot be used


def load_pairs(config: DataConfig, split: str) -> tuple[list[dict], Counter]:
    """Read one of `train` and `test` and apply the row contract.

    Returns the rows, dicts of `prompt` (ends in "\\n\\nAssistant:"), `chosen`, `rejected` (replies as
    written, leading space included) and `subset`; and how many rows were dropped, by reason.

    Raises:
        UserError: the data cannot be found or reached, or a file is not HH data (names file and line).
    """
    rows, dropped = [], Counter()
    for subset, path in _files(config, split):
        for number, line in enumerate(_lines(path), 1):
            row, reason = _row(line, f"{path}, line {number}")
            if row:
                rows.append({**row, "subset": subset})
            else:
                dropped[reason] += 1
    if not rows:
        raise UserError(f"the {split} split of {config.dataset} has no usable pair; check the data set")
    return rows, dropped


def load_split(config: DataConfig, name: str) -> tuple[list[dict], Counter]:
    """Rows of one of `config.splits` or of `eval`, as `load_pairs` returns them.

    The former partition the train split by a hash of the folded prompt, so membership depends neither on the order
    nor on the size of the data. `eval` is the test split without prompts of the train split. `policy` and `eval` hold
    each prompt once.
    """
    if name == "eval":
        train = load_pairs(config, "train")[0] if _find(config, "train") else []  # a test set alone will do
        seen = {prompt_key(row["prompt"]) for row in train}
        rows, dropped = load_pairs(config, "test")
        kept = [row for row in rows if prompt_key(row["prompt"]) not in seen]
        dropped["prompt also in the train split"] += len(rows) - len(kept)
    else:
        rows, dropped = load_pairs(config, "train")
        kept = [row for row in rows if _split_of(row["prompt"], config.splits) == name]
    if name in ("policy", "eval"):
        unique = list({prompt_key(row["prompt"]): row for row in reversed(kept)}.values())[::-1]
        dropped["prompt repeated"] += len(kept) - len(unique)
        kept = unique
    if not kept:
        raise UserError(f"the {name} split of {config.dataset} is empty; use more data, or give it a share in splits")
    return kept, dropped


def build_dataset(config: DataConfig, name: str, frame: Frame, seed: int) -> Dataset:
    """Rows of a split that can be used, as the frame's model reads them, shuffled by `seed`.

    Columns: those of `Frame.row`. What was dropped, and why, is printed.

    Raises:
        UserError: no row is left.
    """
    dataset, dropped = tokenize_split(config, name, frame)
    kept = [i for i, reason in enumerate(dataset["dropped"]) if not reason]
    dropped += Counter(filter(None, dataset["dropped"]))
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"
    if not kept:
        raise UserError(
            f"no row of the {name} split of {config.dataset} fits max_prompt_tokens={config.max_prompt_tokens} and "
            f"max_completion_tokens={config.max_completion_tokens} (dropped: {reasons}); raise them or use other data"
        )
    dataset = dataset.select(kept).shuffle(seed=seed)
    if config.max_rows is not None:
        dataset = dataset.select(range(min(config.max_rows, len(dataset))))
    apart = sum(dataset["apart"])
    note = f"; {apart} with a reply that is other tokens when written together with its prompt" if apart else ""
    print(f"{name}: {len(dataset)} rows of {config.dataset} (dropped: {reasons}{note})")
    return dataset


def tokenize_split(config: DataConfig, name: str, frame: Frame) -> tuple[Dataset, Counter]:
    """All rows of a split through `Frame.row`, those over the limits marked as dropped; and how many `load_split` left
    out, by reason. What one run has tokenized the next ones read from the cache of `datasets`."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "rlhf-trl" / _cache_key(config, name, frame)
    with PartialState().local_main_process_first():
        check_writable(folder if folder.exists() else folder.parent, "HF_DATASETS_CACHE")  # more will be kept there
        if not folder.exists():
            _tokenize_split(config, name, frame, folder)
    return Dataset.load_from_disk(folder), Counter(json.loads((folder / "dropped.json").read_text()))


def _cache_key(config: DataConfig, name: str, frame: Frame) -> str:
    """All that decides what a tokenized split holds: code, files, limits, frame."""
    files = [(split, subset, path) for split in ("train", "test") for subset, path in _find(config, split)]
    contents = [(*origin, file_hash(path)) for *origin, path in files]
    code = file_hash(Path(__file__)), file_hash(Path(frames.__file__)), version("transformers"), version("tokenizers")
    limits = config.data_dir, config.splits, config.max_prompt_tokens, config.max_completion_tokens
    return Hasher.hash((code, contents, name, limits, frame.tokenizer, frame.rest, sorted(frame.ends)))


def _tokenize_split(config: DataConfig, name: str, frame: Frame, folder: Path) -> None:
    rows, dropped = load_split(config, name)
    if name == "sft":
        load_pairs(config, "test")  # a broken test split must not be found only after all the training

    def read(row: dict) -> dict:
        row = frame.row(row)
        longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        if len(row["prompt_ids"]) > config.max_prompt_tokens:
            row["dropped"] = TOO_LONG[0]
        elif longest > config.max_completion_tokens and name != "policy":  # where only the prompts are used
            row["dropped"] = TOO_LONG[1]
        return row

    dataset = Dataset.from_list(rows).map(read, desc=f"Tokenizing {name}", new_fingerprint=folder.name)
    staging = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")  # process ids are the same on several machines
    dataset.save_to_disk(staging)
    (staging / "dropped.json").write_text(json.dumps(dropped))
    try:
        staging.rename(folder)
    except OSError:  # another run was faster
        shutil.rmtree(staging)


def prompt_key(prompt: str) -> str:
    """What makes two prompts the same: the SHA-256 of the text with whitespace folded."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the pairs a run used, as its model read them, in order."""
    digest = hashlib.sha256()
    for row in dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _split_of(prompt: str, splits: dict[str, float]) -> str:
    position, upper = int(prompt_key(prompt)[:8], 16) / 16**8, 0.0
    for name, share in splits.items():
        upper += share
        if position < upper:
            return name
    return name  # the last one: sums of floats can end below 1


def _files(config: DataConfig, split: str) -> list[tuple[str, Path]]:
    files = _find(config, split)
    for missing in set(config.data_dir or ()) - {subset for subset, _ in files}:
        raise UserError(f"{config.dataset} has no subset {missing} with a {split}.jsonl[.gz]; see data_dir")
    if not files:
        raise UserError(f"{config.dataset} holds no {split}.jsonl or {split}.jsonl.gz; name a folder that does")
    return files


def _find(config: DataConfig, split: str) -> list[tuple[str, Path]]:
    root = Path(config.dataset)
    if not root.is_dir():
        check_reachable(config.dataset, "dataset", "DATA")
        patterns = ["*.jsonl", "*.jsonl.gz"]
        try:
            root = Path(snapshot_download(config.dataset, repo_type="dataset", allow_patterns=patterns))
        except Exception as error:  # the hub client raises many unrelated types
            raise UserError(f"the download of {config.dataset} failed ({type(error).__name__}); try again") from error
    paths = sorted(
        path for path in root.rglob(f"{split}.jsonl*") if path.name in (f"{split}.jsonl", f"{split}.jsonl.gz")
    )
    files = [(path.parent.relative_to(root).as_posix(), path) for path in paths]
    return [(subset, path) for subset, path in files if config.data_dir is None or subset in config.data_dir]


def _lines(path: Path) -> Iterator[str]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield from file
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); it is damaged or cut off, fetch it again") from error


def _row(line: str, where: str) -> tuple[dict | None, str]:
    try:
        pair = json.loads(line)
        chosen, rejected = pair["chosen"], pair["rejected"]
        (prompt, _, chosen), (other, _, rejected) = chosen.rpartition(REPLY), rejected.rpartition(REPLY)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: not HH-RLHF data; expected a JSON object with the dialogues 'chosen' and 'rejected'"
        ) from error
    if not TURN.match(prompt):
        raise UserError(f"{where}: not an HH-RLHF dialogue; expected '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    if SURROGATE.search(prompt + chosen + rejected):
        return None, "half a character"
    if prompt != other:
        return None, "prompts differ"
    if not chosen.strip() or not rejected.strip():
        return None, "a side is empty"
    if TURN.search(chosen) or TURN.search(rejected):
        return None, "a reply holds another turn"
    if chosen.strip() == rejected.strip():
        return None, "sides are equal"
    return {"prompt": prompt + REPLY, "chosen": chosen, "rejected": rejected}, ""
