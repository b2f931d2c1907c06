"""HH-RLHF preference pairs: reading, the row contract, prompt-disjoint splits and the text the models see.

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
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError, check_writable
from rlhf_trl.hub import check_reachable, check_source

REPLY = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")


def load_tokenizer(name: str, pad_token: str | None = None, revision: str = "main") -> PreTrainedTokenizerBase:
    """The model's tokenizer, left-padded, with a pad token that is not eos.

    If pad were eos, the trainers would mask the eos that ends a reply and the policy would never learn
    to stop. `pad_token` names the token to use; one that the vocabulary lacks is added to it.

    Raises:
        UserError: the model cannot be had, or there is no pad token besides eos and none is named.
    """
    check_source(name)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, padding_side="left")
    if pad_token:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"the tokenizer of {name} has no pad token besides eos; "
            "set pad_token to one of its unused tokens or to a new one such as '<|pad|>'"
        )
    return tokenizer


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


def build_dataset(config: DataConfig, name: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> Dataset:
    """Rows of a split as the text `tokenizer`'s model sees, shuffled by `seed`, without the too long ones.

    Columns: `dialogue` (HH's text), `prompt`, `chosen`, `rejected` (str), `prompt_ids`, `chosen_ids`, `rejected_ids`
    (list of int; replies end in eos) and `length` (tokens of the prompt with the longer reply). What
    was dropped, and why, is printed. What one run has tokenized the next ones read from the cache of `datasets`.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "rlhf-trl" / _cache_key(config, name, tokenizer)
    with PartialState().local_main_process_first():
        check_writable(folder if folder.exists() else folder.parent, "HF_DATASETS_CACHE")  # more will be kept there
        if not folder.exists():
            _tokenize_split(config, name, tokenizer, folder)
    dataset = Dataset.load_from_disk(folder).shuffle(seed=seed)
    if config.max_rows is not None:
        dataset = dataset.select(range(min(config.max_rows, len(dataset))))
    dropped = json.loads((folder / "dropped.json").read_text())
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"
    print(f"{name}: {len(dataset)} rows of {config.dataset} (dropped: {reasons})")
    return dataset


def _cache_key(config: DataConfig, name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides what a tokenized split holds: code, files, limits, tokenizer."""
    files = [(split, subset, path) for split in ("train", "test") for subset, path in _find(config, split)]
    contents = [(*origin, file_hash(path)) for *origin, path in files]
    code = file_hash(Path(__file__)), version("transformers"), version("tokenizers")
    limits = config.data_dir, config.splits, config.max_prompt_tokens, config.max_completion_tokens
    return Hasher.hash((code, contents, name, limits, tokenizer))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenize_split(config: DataConfig, name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    rows, dropped = load_split(config, name)
    if name == "sft":
        load_pairs(config, "test")  # a broken test split must not be found only after all the training
    total = len(rows)
    dataset = Dataset.from_list(rows)
    dataset = dataset.map(lambda row: tokenize(render(row, tokenizer), tokenizer), desc=f"Tokenizing {name}")
    dataset = dataset.filter(lambda ids: len(ids) <= config.max_prompt_tokens, input_columns="prompt_ids")
    dropped["prompt too long"] = total - len(dataset)
    if name != "policy":  # where only the prompts are used
        dataset = dataset.filter(
            lambda chosen, rejected: max(len(chosen), len(rejected)) <= config.max_completion_tokens,
            input_columns=["chosen_ids", "rejected_ids"],
        )
    dropped["reply too long"] = total - dropped["prompt too long"] - len(dataset)
    if not len(dataset):
        raise UserError(
            f"no row of the {name} split of {config.dataset} fits max_prompt_tokens={config.max_prompt_tokens} "
            f"and max_completion_tokens={config.max_completion_tokens}; raise them or use other data"
        )
    staging = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")  # process ids are the same on several machines
    dataset.save_to_disk(staging)
    (staging / "dropped.json").write_text(json.dumps(dropped))
    try:
        staging.rename(folder)
    except OSError:  # another run was faster
        shutil.rmtree(staging)


def render(row: dict, tokenizer: PreTrainedTokenizerBase) -> dict:
    """The row as the text the model sees, and the dialogue so far as HH writes it as `dialogue`."""
    sides = ("chosen", "rejected") if tokenizer.chat_template else ()
    replies = {side: row[side].strip() for side in sides}
    return {**row, "dialogue": row["prompt"], "prompt": render_prompt(row["prompt"], tokenizer), **replies}


def render_prompt(dialogue: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """An HH dialogue that ends in "\\n\\nAssistant:" as a prompt: HH's own format, or the tokenizer's chat template
    where it has one.

    A chat model's prompt ends in the template's generation prompt, so that prompt + reply + eos is both
    what SFT teaches and what sampling produces. (TRL's own rendering of conversations can put tokens
    after eos; then the reward model would be trained on another input than it later scores.)
    """
    if not tokenizer.chat_template:
        return dialogue
    prompt = tokenizer.apply_chat_template(
        messages(dialogue.removesuffix(REPLY)),
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # read by templates of hybrid reasoning models, ignored by the others
    )
    if tokenizer.bos_token and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        prompt = prompt.removeprefix(tokenizer.bos_token)  # the tokenizer adds it again
    return prompt


def tokenize(row: dict, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Add `prompt_ids`, `chosen_ids`, `rejected_ids` and `length`; a finished reply ends in eos.

    Prompt and reply are tokenized apart, because that is how a policy meets them.
    """
    ids = {"prompt_ids": tokenizer(row["prompt"])["input_ids"]}
    for side in ("chosen", "rejected"):
        ids[f"{side}_ids"] = tokenizer(row[side], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    longest = max(len(ids["chosen_ids"]), len(ids["rejected_ids"]))
    return {**row, **ids, "length": len(ids["prompt_ids"]) + longest}


def messages(dialogue: str) -> list[dict]:
    """Chat messages of an HH dialogue; turns of one speaker in a row are joined.

    >>> messages("\\n\\nHuman: Hi\\n\\nAssistant: Hello.")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]
    """
    _, *turns = TURN.split(dialogue)
    result: list[dict] = []
    for speaker, text in zip(turns[::2], turns[1::2], strict=True):
        role = {"Human": "user", "Assistant": "assistant"}[speaker]
        if result and result[-1]["role"] == role:
            result[-1]["content"] += "\n\n" + text.strip()
        else:
            result.append({"role": role, "content": text.strip()})
    return result


def prompt_key(prompt: str) -> str:
    """What makes two prompts the same: the SHA-256 of the text with whitespace folded."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the pairs a run used, in order."""
    digest = hashlib.sha256()
    for row in dataset.select_columns(["prompt", "chosen", "rejected"]):
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
    if prompt != other:
        return None, "prompts differ"
    if not chosen.strip() or not rejected.strip():
        return None, "a side is empty"
    if TURN.search(chosen) or TURN.search(rejected):
        return None, "a reply holds another turn"
    if chosen.strip() == rejected.strip():
        return None, "sides are equal"
    return {"prompt": prompt + REPLY, "chosen": chosen, "rejected": rejected}, ""
