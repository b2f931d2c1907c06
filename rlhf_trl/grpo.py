"""TRL's GRPOTrainer in the one frame: its prompts, its ends of a reply and its order of prompts corrected."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from rlhf_trl.batching import SetEpoch, seeded_order
from rlhf_trl.errors import UserError
from rlhf_trl.frames import Frame
from rlhf_trl.rewards import Reward


class CorrectedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that reads and ends as the frame says. Each method is one correction."""

    def __init__(self, args: GRPOConfig, frame: Frame, reward: Reward, **options) -> None:
        self.frame = frame

        def score(prompts: list[str], completion_ids: list[list[int]], **_) -> list[float]:
            """TRL's own use of a reward model decodes the completions and tokenizes them again, without their end."""
            return reward([frame.prompt_ids(prompt) for prompt in prompts], completion_ids).tolist()

        ends = {"stop_token_ids" if args.use_vllm else "eos_token_id": sorted(frame.ends)}
        given = args.generation_kwargs or {}
        if given.keys() & ends:
            raise UserError(
                f"generation_kwargs: {min(ends)} has no place here; a reply ends where SFT's model ends one"
            )
        args.generation_kwargs = given | ends
        super().__init__(args=args, reward_funcs=score, processing_class=frame.tokenizer, **options)
        self._tokenizer = _ManyEnds(frame)
        self.add_callback(SetEpoch)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
        """TRL would let the tokenizer add what it likes, eos included."""
        return [self.frame.prompt_ids(prompt) for prompt in prompts], None, {}

    def _get_train_sampler(self, dataset=None) -> Sampler:
        """TRL cannot group by length; and its order would start anew in a resumed epoch."""
        sampler = super()._get_train_sampler(dataset)
        lengths = [len(self.frame.prompt_ids(prompt)) for prompt in self.train_dataset["prompt"]]
        return _OrderedRepeatSampler(sampler, seeded_order(self.args, lengths, sampler.batch_size))


class _ManyEnds:
    """The tokenizer as TRL asks it where completions end and which are cut off: it knows one eos, and would take the
    padding behind another end for a part of the completion."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.eos_token_id = frame, _AnyOf(frame.ends)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.frame.tokenizer, name)


class _AnyOf:
    """Equals each of some ids; compared with a tensor, elementwise."""

    def __init__(self, ids: set[int]) -> None:
        self.ids = ids

    def __eq__(self, other: int | torch.Tensor) -> bool | torch.Tensor:
        if isinstance(other, torch.Tensor):
            return torch.isin(other, torch.tensor(sorted(self.ids), device=other.device))
        return other in self.ids


class _OrderedRepeatSampler(RepeatSampler):
    """What TRL's sampler repeats, in the order of another one; those left over are others in every epoch."""

    def __init__(self, sampler: RepeatSampler, order: Sampler[int]) -> None:
        super().__init__(order, sampler.mini_repeat_count, sampler.batch_size, sampler.repeat_count, shuffle=False)

    def set_epoch(self, epoch: int) -> None:
        self.data_source.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(self.data_source)
        return (order[position] for position in super().__iter__())


def check_batches(args: GRPOConfig, prompts: int) -> None:
    """Refuse data with which TRL would end without a step.

    Raises:
        UserError: fewer prompts than one batch of generations has.
    """
    batch = args.generation_batch_size // args.num_generations
    if prompts < batch:
        raise UserError(
            f"GRPO needs at least one batch of {batch} prompts (per_device_train_batch_size x processes x "
            f"steps_per_generation / num_generations) and the data has {prompts}; use more data or smaller batches"
        )
