"""Splits that share no prompt: by a hash of the prompt, so that they depend neither on the order nor on the size of the
data."""

from collections import Counter

from datasets import Dataset

from rlhf_trl.config import DataConfig
from rlhf_trl.data_files import find_files
from rlhf_trl.errors import UserError
from rlhf_trl.preferences import load_pairs

TEST_SHARE = 0.1  # of the prompts, where the data have no test split


def load_split(config: DataConfig, name: str) -> tuple[Dataset, Counter, Counter]:
    """Rows of one of `config.splits` or of `eval`, with the columns of `load_pairs`; how many rows of the files were
    dropped, by reason; and how many rows each file holds.

    The former partition the train split. `eval` is the test split without prompts of the train split; where there is no
    test split, a part of the train split is taken away for it first. `policy` and `eval` hold each prompt once.

    Raises:
        UserError: see `load_pairs`; or no row is left.
    """
    has_test = bool(find_files(config, "test"))
    from_test = name == "eval" and has_test
    pairs = load_pairs(config, "test" if from_test else "train")
    keys, dropped = pairs["key"][:], Counter(filter(None, pairs["dropped"][:]))
    kept = [i for i, key in enumerate(keys) if key]
    if from_test:
        train = load_pairs(config, "train")["key"][:] if find_files(config, "train") else []  # a test set alone will do
        seen, usable = set(train), len(kept)
        kept = [i for i in kept if keys[i] not in seen]
        dropped["prompt also in the train split"] += usable - len(kept)
    else:
        kept = [i for i in kept if _split_of(keys[i], config.splits, has_test) == name]
    if name in ("policy", "eval"):
        unique = {keys[i]: i for i in reversed(kept)}
        dropped["prompt repeated"] += len(kept) - len(unique)
        kept = list(unique.values())[::-1]
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"
        raise UserError(
            f"the {name} split of {config.dataset} is empty (dropped: {reasons}); use more data, or give it a share in "
            "splits"
        )
    return pairs.select(kept), dropped, Counter(pairs["file"][:])


def _split_of(key: str, splits: dict[str, float], has_test: bool) -> str:
    position, other_position = (int(digits, 16) / 16**8 for digits in (key[:8], key[8:16]))
    if not has_test and other_position < TEST_SHARE:
        return "eval"
    upper = 0.0
    for name, share in splits.items():
        upper += share
        if position < upper:
            return name
    return name  # the last one: sums of floats can end below 1
