"""Batches of like length: little padding, each epoch another order, the same order everywhere."""

from itertools import chain

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler
from trl import RewardConfig, RewardTrainer

from rlhf_trl.batching import MOST_POSITIONS_ON_CPU, LengthGroupedSampler, batches, combined_seed, length_grouped
from rlhf_trl.frame_loading import load_frame

# As long as HH-RLHF's dialogues: 167 tokens on average, 429 at the 95th percentile
LENGTHS = np.random.default_rng(0).lognormal(4.8, 0.8, 1003).astype(int).clip(10, 768).tolist()


def useful(batches):
    padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)
    return sum(LENGTHS[i] for batch in batches for i in batch) / padded


def test_most_of_a_batch_is_no_padding():
    assert useful(BatchSampler(RandomSampler(LENGTHS), 8, drop_last=False)) < 0.5
    assert useful(BatchSampler(LengthGroupedSampler(LENGTHS, 8, seed=0), 8, drop_last=False)) > 0.9
    # on 32 GPUs
    large = LengthGroupedSampler(LENGTHS, 8 * 32, seed=0)
    assert useful(BatchSampler(RandomSampler(LENGTHS), 8 * 32, drop_last=False)) < 0.3
    assert useful(BatchSampler(large, 8 * 32, drop_last=False)) > 0.4


def test_an_epoch_has_each_row_once_in_an_order_of_its_own():
    orders = []
    for seed in (0, 1):
        sampler = LengthGroupedSampler(LENGTHS, 8, seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders.append(list(sampler))
            assert orders[-1] == list(sampler)
    assert all(sorted(order) == list(range(len(LENGTHS))) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_the_longest_row_comes_in_the_first_batch_and_lengths_do_not_trend():
    sampler = LengthGroupedSampler(LENGTHS, 8, seed=0)
    order = list(sampler)
    assert LENGTHS.index(max(LENGTHS)) in order[:8]
    sampler.set_epoch(1)
    assert LENGTHS.index(max(LENGTHS)) not in list(sampler)[:8]
    means = [np.mean([LENGTHS[i] for i in order[start : start + 8]]) for start in range(8, 1000, 8)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 2.6 / len(means) ** 0.5  # its 99% under no trend


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 400, 401])
def test_any_number_of_rows(rows):
    assert sorted(LengthGroupedSampler(LENGTHS[:rows], 8, seed=0)) == list(range(rows))


def test_processes_share_out_batches_of_like_length():
    """Two processes with four rows a batch each: together the batches of one process with eight."""
    one = list(BatchSampler(LengthGroupedSampler(LENGTHS[:80], 8, seed=0), 8, drop_last=False))
    halves = [
        list(BatchSamplerShard(BatchSampler(LengthGroupedSampler(LENGTHS[:80], 8, seed=0), 4, False), 2, process))
        for process in range(2)
    ]
    assert [first + second for first, second in zip(*halves, strict=True)] == one


def test_a_trainer_groups_by_the_column_length_if_told_to(world, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification

    rows = [{"chosen_ids": [5] * n, "rejected_ids": [6] * n, "length": n} for n in LENGTHS[:40]]

    def trainer(kind, strategy):
        return kind(
            model=AutoModelForSequenceClassification.from_pretrained(world / "model", num_labels=1),
            args=RewardConfig(
                output_dir=str(tmp_path),
                train_sampling_strategy=strategy,
                per_device_train_batch_size=4,
                max_length=None,
                use_cpu=True,
                bf16=False,
                report_to="none",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=load_frame(str(world / "model")).tokenizer,
        )

    grouped = trainer(length_grouped(RewardTrainer), "group_by_length").get_train_dataloader()
    expected = BatchSampler(LengthGroupedSampler(LENGTHS[:40], 4, seed=42), 4, drop_last=False)
    widths = [batch["input_ids"].shape[1] for batch in grouped]
    assert widths == [max(LENGTHS[i] for i in batch) for batch in expected]
    with pytest.raises(ValueError, match="automatically infer lengths"):  # why the class is there
        trainer(RewardTrainer, "group_by_length").get_train_dataloader()
    in_order = trainer(length_grouped(RewardTrainer), "sequential").get_train_dataloader()
    assert isinstance(in_order.batch_sampler.sampler, SequentialSampler)


def test_seeds_combine_to_others():
    seeds = [combined_seed(first, second) for first in range(50) for second in range(50)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)


def test_batches_of_an_evaluation_are_smaller_on_a_cpu_where_sequences_are_long():
    lengths = [*LENGTHS[:100], MOST_POSITIONS_ON_CPU + 1]  # which is a batch of its own
    anywhere = list(batches(lengths, 32))
    assert [len(batch) for batch in anywhere] == [32, 32, 32, 5]
    assert list(batches(lengths, 32, device=torch.device("cuda"))) == anywhere
    on_cpu = list(batches(lengths, 32, device=torch.device("cpu")))
    assert [*chain(*on_cpu)] == [*chain(*anywhere)]
    positions = [len(batch) * max(lengths[i] for i in batch) for batch in on_cpu]
    assert max(positions[1:]) <= MOST_POSITIONS_ON_CPU and on_cpu[0] == [100]
    assert max(map(len, on_cpu)) <= 32 and len(on_cpu) < 20
