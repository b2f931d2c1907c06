"""Batches of sequences of like length: padding costs as much as tokens do, and teaches nothing.

Random batches of HH-RLHF's pairs are more than half padding.
"""

import sys
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import PartialState
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

# Sequences that are sorted together, and the batches that these are at least. Counting sequences lets large batches mix
# more lengths, which they need, as they suffer more from being of one length and of what goes with it.
MEGA_BATCH, FEWEST_BATCHES = 400, 4
# Padding included. Larger batches are no faster on a CPU, whose caches they leave, and have more padding.
MOST_POSITIONS_ON_CPU = 2048


class SetEpoch(TrainerCallback):
    """Passes the epoch to the sampler. Trainer's own call misses it when several processes resume inside an epoch: the
    sampler is then wrapped one level deeper than it looks."""

    def on_epoch_begin(self, args, state, control, train_dataloader, **_) -> None:
        train_dataloader.set_epoch(int(state.epoch))


class LengthGroupedSampler(Sampler[int]):
    """Indexes such that each `batch_size` of them in a row are of like length, in an order of its own every epoch.

    All are shuffled, cut into mega-batches, sorted by length within each, cut into batches, and the batches shuffled:
    so, unlike with transformers' sampler of the same name, lengths do not fall and rise in waves as training goes on.
    The order depends on seed and epoch alone, which makes it the same in every process and after a resume. The
    first batch of all holds the longest sequence, so that memory runs out early if it does.

    With `drop_last` those that do not fill a batch are left out. They are drawn at random in every epoch: after the
    sorting they would be the shortest, and might never be seen.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, drop_last: bool = False) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.drop_last = drop_last

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) - self.drop_last * (len(self.lengths) % self.batch_size)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(combined_seed(self.seed, self.epoch))
        rows = list(range(len(self.lengths)))
        if self.drop_last:
            rows = torch.randperm(len(rows), generator=generator).tolist()
            if self.epoch == 0:
                rows.sort(key=self.lengths.index(max(self.lengths)).__ne__)  # the longest comes first
            rows = rows[: len(self)]
        batches_sorted = max(FEWEST_BATCHES, MEGA_BATCH // self.batch_size)
        lengths = [self.lengths[row] for row in rows]
        order = [rows[i] for i in get_length_grouped_indices(lengths, self.batch_size, batches_sorted, generator)]
        whole = len(order) // self.batch_size
        first = [0][:whole] if self.epoch == 0 else []
        shuffled = torch.randperm(whole - len(first), generator=generator) + len(first)
        for number in [*first, *shuffled.tolist(), whole]:  # the last one is smaller, or empty
            yield from order[number * self.batch_size : (number + 1) * self.batch_size]


def seeded_order(args: TrainingArguments, lengths: list[int], batch_size: int) -> Sampler[int]:
    """The order of prompts that `train_sampling_strategy` asks for, which depends on seed and epoch alone."""
    if args.train_sampling_strategy == "group_by_length":
        return LengthGroupedSampler(lengths, batch_size, args.seed, drop_last=True)
    return SeedableRandomSampler(lengths, data_seed=args.seed)


def combined_seed(*seeds: int) -> int:
    """One seed of several; torch would look at the lower 32 bits of a larger number only."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


def length_grouped(trainer: type[Trainer]) -> type[Trainer]:
    """A trainer that can do what `train_sampling_strategy: group_by_length` asks for, by the column `length`; and whose
    evaluations leave no trace in what it trains.

    (Trainer's own way drops that column before it looks for it, and TRL's pairs have no `input_ids` to fall back on.)
    """

    class LengthGrouped(trainer):
        def __init__(self, *args, eval_dataset: Dataset | None = None, **options) -> None:
            super().__init__(*args, eval_dataset=eval_dataset and eval_dataset.sort("length"), **options)
            self.add_callback(SetEpoch)

        def _get_train_sampler(self, train_dataset=None) -> Sampler:
            if self.args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(train_dataset)
            batch_size = self.args.train_batch_size * self.args.world_size
            return LengthGroupedSampler(self.train_dataset["length"][:], batch_size, self.args.seed)

        def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler:
            return SequentialSampler(eval_dataset)

        def evaluate(self, *args, **options) -> dict[str, float]:
            with torch.random.fork_rng(devices=[]):  # each pass over a DataLoader draws from the global state
                return super().evaluate(*args, **options)

    return LengthGrouped


def batches(
    lengths: list[int], batch_size: int, progress: str | None = None, device: torch.device | None = None
) -> Iterator[list[int]]:
    """Indexes of sequences in batches of like length, the longest first, with a progress bar if it has a name.

    Given the device on which each batch is read in one pass, batches for a CPU are smaller where sequences are long.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    most = MOST_POSITIONS_ON_CPU if device is not None and device.type == "cpu" else sys.maxsize
    silent = progress is None or not PartialState().is_local_main_process
    with tqdm(total=len(order), desc=progress, disable=silent) as bar:
        while order:
            size = min(batch_size, max(1, most // lengths[order[0]]))
            batch, order = order[:size], order[size:]
            yield batch
            bar.update(len(batch))
