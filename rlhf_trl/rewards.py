"""The reward model: what it reads, the scale of its scores, and the one way to score with it.

What reaches the model for a (prompt, completion, finished?) triple are the ids of `rlhf_trl/frames.py`, with an end
exactly when the completion finished. Reward training, PPO, GRPO and the evaluation all give it the same.
"""

import math
from dataclasses import replace

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from trl.trainer.utils import pad

from rlhf_trl.batching import batches
from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError, check_folder, work
from rlhf_trl.frame_loading import PAD, load_frame, set_pad
from rlhf_trl.frames import Frame
from rlhf_trl.hub import check_source, check_weights, is_adapter, lineage
from rlhf_trl.models import align_special_tokens, device, load, positions, without_zero3_sharding
from rlhf_trl.tokens import build_dataset

# Validation pairs that the scale of a reward model is measured on; of fewer, an sd says little (of 16, +- 35%)
SCALE_ROWS, FEWEST_SCALE_ROWS = 256, 16
LONGEST = 4096  # tokens of the pairs that the scale of a reward model that is not ours is measured on


class StandardisedHead(nn.Module):
    """A score head whose scores have mean 0 and sd 1 over held-out chosen replies.

    The loss of a reward model (Bradley-Terry) leaves the level of its scores open and their scale to
    chance. Centred and scaled, the KL coefficient and the penalty for a missing eos mean the same for
    every reward model.
    """

    def __init__(self, head: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.head, self.mean, self.std = head, mean, std

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden size) -> (..., 1)."""
        return (self.head(hidden).float() - self.mean) / self.std  # bfloat16 would round scores near 1 to 1/128


class Reward:
    """What PPO and GRPO learn from: the score of the sampled ids, less a penalty for a completion that did not end.

    `rest` is what the reward model reads behind a finished completion.
    """

    def __init__(
        self, model: PreTrainedModel, frame: Frame, rest: list[int], missing_eos_penalty: float | None, batch_size: int
    ) -> None:
        self.model, self.frame, self.rest, self.batch_size = model, frame, rest, batch_size
        self.penalty = missing_eos_penalty or 0.0

    def __call__(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> torch.Tensor:
        """One reward a completion, float32 of shape (len(completion_ids),)."""
        finished = [self.frame.finished(ids) for ids in completion_ids]
        sequences = [
            prompt + completion + self.rest * ended
            for prompt, completion, ended in zip(prompt_ids, completion_ids, finished, strict=True)
        ]
        return score(self.model, sequences, self.batch_size) - self.penalty * ~torch.tensor(finished)


def check_reward_model(source: str, trust_remote_code: bool = False) -> None:
    """Find out from its config alone whether a folder or hub model gives one score per sequence.

    Raises:
        UserError: it does not, or cannot be had.
    """
    try:
        check_folder(source, "reward model")
    except UserError as error:
        raise UserError(f"{error}, with 'make reward'") from error
    check_source(source, "reward_model")
    if is_adapter(source):
        if PeftConfig.from_pretrained(source).task_type != "SEQ_CLS":
            raise UserError(f"{source} holds no reward model but an adapter of another kind; name another")
    else:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if not any("ForSequenceClassification" in name for name in config.architectures or []):
            raise UserError(f"{source} holds no reward model (no sequence classifier); make one with 'make reward'")
        if config.num_labels != 1:
            raise UserError(f"{source} gives {config.num_labels} labels; a reward model gives one score")
    check_weights(source)


def recorded_scale(source: str, trust_remote_code: bool = False) -> tuple[float, float] | None:
    """Mean and sd of the raw scores, as our recipe has left them in a model's config; None if it is not ours.

    Raises:
        UserError: they are no scale.
    """
    if is_adapter(source):
        return None
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if not hasattr(config, "reward_std"):
        return None
    return _checked(config.reward_mean, config.reward_std, source)


def reward_frame(source: str, trust_remote_code: bool = False) -> Frame:
    """The frame that a reward model reads in. One that is not ours reads all that its template writes."""
    ours = recorded_scale(source, trust_remote_code) is not None
    return load_frame(source, whole=not ours, trust_remote_code=trust_remote_code)


def check_fit(frame: Frame, other: Frame, source: str) -> None:
    """Refuse a reward model that would not read what the policy writes.

    Raises:
        UserError: vocabulary or frame of the two differ.
    """
    if difference := frame.differs_from(other):
        raise UserError(
            f"the reward model {source} has another {difference} than the policy and would read other text than was "
            "written; make one from the same SFT model with 'make reward'"
        )


def check_scale(source: str, data: DataConfig, seed: int, trust_remote_code: bool = False) -> None:
    """Find out, without loading it, whether a reward model has a scale or there are pairs to measure it on.

    Raises:
        UserError: no reward model, or neither.
    """
    check_reward_model(source, trust_remote_code)
    if recorded_scale(source, trust_remote_code) is None:
        whole, revision = lineage(source)[-1]
        config = AutoConfig.from_pretrained(whole, revision=revision, trust_remote_code=trust_remote_code)
        load_foreign_pairs(config, data, reward_frame(source, trust_remote_code), seed)


def load_reward_model(
    source: str, data: DataConfig, seed: int, frame: Frame | None = None, **load_options
) -> tuple[PreTrainedModel, Frame]:
    """A reward model in eval mode that gives standardised scores, and the frame that it reads in.

    The scale of a model that is not ours is measured first, on pairs of the validation split of `data` that are no
    longer than it can read, so that all that use it find the same.

    Args:
        frame: the policy's, which the reward model's must fit.
        load_options: go to `from_pretrained`; float32 by default.

    Raises:
        UserError: no reward model, one that does not fit the policy, or one whose scores have no scale.
    """
    options = {"dtype": "float32", "trust_remote_code": False} | load_options
    check_reward_model(source, options["trust_remote_code"])
    own = reward_frame(source, options["trust_remote_code"])
    if frame is not None:
        check_fit(frame, own, source)
    elif own.tokenizer.pad_token_id is None or own.tokenizer.pad_token_id in own.ends:
        set_pad(own, source, PAD)
    model = align_special_tokens(load_raw(source, own, **options), frame or own)
    if not hasattr(model, "score"):
        raise UserError(f"the reward model {source} has no linear head of the name score; name another reward model")
    scale = recorded_scale(source, options["trust_remote_code"])
    if scale is None:
        scale = measure_scale(model.to(device()), load_foreign_pairs(model.config, data, own, seed))
    model.score = StandardisedHead(model.score, *scale)
    return model, own


def load_raw(source: str, frame: Frame, **load_options) -> PreTrainedModel:
    """A reward model in eval mode that gives its raw scores, an adapter merged.

    Raises:
        UserError: an adapter whose head has more labels than one, which its config does not tell.
    """
    try:
        with without_zero3_sharding():
            return align_special_tokens(load(source, "SEQ_CLS", frame.tokenizer, **load_options), frame).eval()
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(f"{source} does not fit a reward model: more labels than one, or another base") from error


def reward_std(source: str, data: DataConfig, seed: int, **load_options) -> float:
    """The standard deviation of a reward model's scores: what our recipe recorded, or measured as above."""
    scale = recorded_scale(source, load_options.get("trust_remote_code", False))
    if scale is not None:
        return scale[1]
    return load_reward_model(source, data, seed, **load_options)[0].score.std


def load_scale_pairs(data: DataConfig, frame: Frame, seed: int) -> Dataset:
    """Pairs of the validation split to measure the scale of a reward model on.

    Raises:
        UserError: too few for a standard deviation.
    """
    pairs = build_dataset(replace(data, max_rows=SCALE_ROWS), "validation", frame, seed)
    if len(pairs) < FEWEST_SCALE_ROWS:
        raise UserError(
            f"the scale of a reward model needs {FEWEST_SCALE_ROWS} pairs of the validation split and there are "
            f"{len(pairs)}; use more data, or give validation a larger share in splits"
        )
    return pairs


def load_foreign_pairs(config: PreTrainedConfig, data: DataConfig, frame: Frame, seed: int) -> Dataset:
    """The same for a reward model that is not ours, with limits of its own, so that all that use it find one scale."""
    half = int(min(positions(config), LONGEST)) // 2
    return load_scale_pairs(replace(data, max_prompt_tokens=half, max_completion_tokens=half), frame, seed)


def measure_scale(model: PreTrainedModel, pairs: Dataset, batch_size: int = 16) -> tuple[float, float]:
    """Mean and standard deviation of a reward model's scores of the chosen replies.

    Raises:
        UserError: the scores are all alike or not finite.
    """
    chosen = [prompt + reply for prompt, reply in zip(pairs["prompt_ids"], pairs["chosen_ids"], strict=True)]
    scores = score(model, chosen, batch_size, progress="Scale of the scores")
    return _checked(scores.mean().item(), scores.std().item(), model.name_or_path)


def _checked(mean: float, std: float, source: str) -> tuple[float, float]:
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise UserError(
            f"the scores of the reward model {source} on held-out replies have mean {mean:g} and sd {std:g}, so they "
            "cannot be a reward; train it again with a lower learning rate and --fresh, or name another"
        )
    return mean, std


@torch.no_grad()
@work
def score(
    model: PreTrainedModel, sequences: list[list[int]], batch_size: int = 16, progress: str | None = None
) -> torch.Tensor:
    """Scores of token id sequences, float32 of shape (len(sequences),), in batches of like length."""
    longest = max(map(len, sequences), default=0)
    if longest > positions(model.config):
        raise UserError(
            f"a prompt and its reply of {longest} tokens do not fit the context of {positions(model.config)} tokens of "
            f"{model.name_or_path}; lower max_prompt_tokens or the completion length"
        )
    scores = torch.empty(len(sequences))
    for batch in batches([len(ids) for ids in sequences], batch_size, progress, model.device):
        tensors = [torch.tensor(sequences[i]) for i in batch]
        ids, mask = pad(tensors, model.config.pad_token_id), pad([torch.ones_like(row) for row in tensors])
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        scores[batch] = logits.squeeze(-1).float().cpu()
    return scores
