"""GRPO's own: which prompts it sees, and that every end of a reply counts."""

from types import SimpleNamespace

import pytest
import torch
from trl.trainer.utils import RepeatSampler

from rlhf_trl.batching import seeded_order
from rlhf_trl.grpo import _ManyEnds, _OrderedRepeatSampler
from tests.conftest import settings


def epochs(strategy, count, prompts=30, batch=16):
    args = SimpleNamespace(train_sampling_strategy=strategy, seed=0)
    lengths = [5 + i % 7 for i in range(prompts)]
    sampler = _OrderedRepeatSampler(RepeatSampler(lengths, 2, batch, 3), seeded_order(args, lengths, batch))
    for epoch in range(count):
        sampler.set_epoch(epoch)
        yield list(sampler)
        assert len(list(sampler)) == len(sampler)


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_the_prompts_left_over_are_others_in_every_epoch(strategy):
    """With 30 prompts in batches of 16, 14 are left out of an epoch; after some, each has been seen."""
    seen = list(epochs(strategy, 12))
    assert set(map(len, seen)) == {16 * 2 * 3}
    assert {index for epoch in seen for index in epoch} == set(range(30))
    assert list(epochs(strategy, 12)) == seen  # in a resumed run, too
    assert [seen[0][::2][:16]] * 3 == [seen[0][::2][i : i + 16] for i in (0, 16, 32)]


def test_grpo_with_fewer_prompts_than_a_batch_is_refused(run, world, tmp_path):
    """TRL would end at once, with SFT's weights for a result."""
    changes = {"model_name_or_path": str(world / "model"), "per_device_train_batch_size": 400}
    (tmp_path / "reward").mkdir()
    path = settings(tmp_path, "grpo", world, **changes)
    code, _, error = run("grpo", "--config", path)
    assert code == 2 and "GRPO needs at least one batch of 100 prompts" in error.splitlines()[-1]
    assert not (tmp_path / "grpo").exists() and not (tmp_path / "grpo.partial").exists()


def test_every_end_is_an_end():
    view = _ManyEnds(SimpleNamespace(ends={3, 7}, tokenizer=SimpleNamespace(pad_token_id=0)))
    ids = torch.tensor([[1, 7, 0], [3, 2, 1]])
    assert (ids == view.eos_token_id).tolist() == [[False, True, False], [True, False, False]]
    assert 7 in [view.eos_token_id, view.pad_token_id] and 2 not in [view.eos_token_id, view.pad_token_id]


def test_nothing_is_published_that_was_not_trained(run, world, tmp_path):
    code, _, error = run("sft", "--config", settings(tmp_path, "sft", world, max_steps=-1, num_train_epochs=0))
    assert code == 2 and "nothing was trained" in error.splitlines()[-1]
    assert not (tmp_path / "sft").exists() and not (tmp_path / "sft.partial").exists()
