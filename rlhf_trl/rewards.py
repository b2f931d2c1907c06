"""The reward model: what it reads, the scale of its scores, and the one way to score with it.

What reaches the model for a (prompt, completion, finished?) triple is prompt ids + completion ids, with
eos at the end exactly when the completion finished. Reward training, TRL's PPO reward function, the
GRPO callable and the evaluation all give it the same ids.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_trl.batching import batches
from rlhf_trl.errors import UserError
from rlhf_trl.models import is_reward_model, keep_gradients, whole_weights


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


def check_reward_model(folder: str) -> None:
    """Find out early, without loading it, whether a folder holds a reward model with the scale of its scores.

    Raises:
        UserError: the folder is not one that the reward recipe made.
    """
    if not is_reward_model(folder):
        raise UserError(f"{folder} holds no reward model; make one with 'make reward' and name its run folder")


def load_reward_model(folder: str, **load_options) -> PreTrainedModel:
    """A trained reward model, in eval mode, that gives standardised scores.

    `load_options` go to `from_pretrained`; float32 by default.

    Raises:
        UserError: the folder is not one that the reward recipe made.
    """
    check_reward_model(folder)
    with whole_weights():
        model = AutoModelForSequenceClassification.from_pretrained(folder, **{"dtype": "float32"} | load_options)
    model.score = StandardisedHead(model.score, model.config.reward_mean, model.config.reward_std)
    return keep_gradients(model).eval()


@torch.no_grad()
def score(
    model: PreTrainedModel, sequences: list[list[int]], batch_size: int = 16, progress: str | None = None
) -> torch.Tensor:
    """Scores of token id sequences, float32 of shape (len(sequences),), in batches of like length."""
    scores = torch.empty(len(sequences))
    for batch in batches([len(ids) for ids in sequences], batch_size, progress, model.device):
        tensors = [torch.tensor(sequences[i]) for i in batch]
        ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=model.config.pad_token_id)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tensors], batch_first=True)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        scores[batch] = logits.squeeze(-1).float().cpu()
    return scores


def grpo_reward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing_eos_penalty: float, batch_size: int
) -> Callable[..., list[float]]:
    """A reward function for TRL's GRPOTrainer: the reward that PPO gets too, penalty for a missing eos included.

    TRL's own use of a reward model decodes the completions and tokenizes them again without eos. This
    one takes the sampled ids, in which eos stands where, and only where, it was generated.
    """

    def reward(prompts: list[str], completion_ids: list[list[int]], **_) -> list[float]:
        prompt_ids = tokenizer(prompts)["input_ids"]
        sequences = [prompt + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        unfinished = torch.tensor([ids[-1] != tokenizer.eos_token_id for ids in completion_ids])
        return (score(model, sequences, batch_size) - missing_eos_penalty * unfinished).tolist()

    return reward
