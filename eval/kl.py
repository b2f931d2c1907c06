"""The sequence KL of a policy from the reference, estimated from the policy's own replies.

KL(pi || pi_ref) of whole replies is the expectation, over replies of the policy, of the sum over their tokens of
log pi - log pi_ref. The expectation of each token given those before it is known: the KL of the two distributions of
the next token, a sum over the vocabulary. Putting it in the place of the sampled token's log-ratio (Rao-Blackwell, as
in Amini et al. 2025, arXiv 2504.10637) leaves the mean over replies what it was, makes it spread less and never
negative. It takes both models' logits at the same time.
"""

import gc
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rlhf_trl.errors import work
from rlhf_trl.hub import lineage
from rlhf_trl.measure import free_memory

LOGITS = 2**24  # made float32 at a time: 64 MiB, whatever the vocabulary
SHARE = 0.8  # of the free memory that a second model may take; the rest is for what comes and goes with a batch


@torch.no_grad()
@work
def exact(
    policy: PreTrainedModel | PeftModel,
    reference: PreTrainedModel,
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    temperature: float = 1.0,
) -> list[float]:
    """Sum over a completion's tokens of KL(policy || reference) given what stands before, in nats; one a prompt.

    `temperature` divides the policy's logits, as when it was sampled; the reference's stay as they are. A policy that
    is an adapter on `reference` itself is switched off for the reference's turn.
    """
    ours = _logits(policy, prompt_ids, completion_ids)
    adapter = isinstance(policy, PeftModel) and policy.get_base_model() is reference
    with policy.disable_adapter() if adapter else nullcontext():
        theirs = ours if policy is reference else _logits(reference, prompt_ids, completion_ids)
    tokens = min(ours.shape[1], theirs.shape[1])  # what one has more than the other pads its matrix
    divergences = [
        kl_div(q.float().log_softmax(-1), (p.float() / temperature).log_softmax(-1), reduction="none", log_target=True)
        .sum(-1)
        .clamp(min=0)  # against rounding
        for p, q in zip(_parts(ours[:, :tokens]), _parts(theirs[:, :tokens]), strict=True)
    ]
    return _sums(divergences, completion_ids)


@torch.no_grad()
@work
def log_probabilities(
    model: PreTrainedModel, prompt_ids: list[list[int]], completion_ids: list[list[int]]
) -> list[float]:
    """log pi(completion | prompt) in nats, summed over the completion's tokens; one a prompt."""
    logits = _logits(model, prompt_ids, completion_ids)
    ids = torch.tensor([token for completion in completion_ids for token in completion], device=logits.device)
    parts = zip(_parts(logits), ids.split(_rows(logits)), strict=True)
    logps = [part.float().log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1) for part, tokens in parts]
    return _sums(logps, completion_ids)


@contextmanager
def beside(
    reference: PreTrainedModel, folder: str, source: str, load: Callable[[str], PreTrainedModel | PeftModel]
) -> Iterator[PreTrainedModel | PeftModel | None]:
    """The policy `source` in memory together with the reference, which was loaded from `folder`; None if that does not
    fit. A LoRA adapter of the reference is put on it, and off it at the end; any other policy `load` loads."""
    if source == folder:
        yield reference
    elif _is_adapter_of(source, folder):
        policy = PeftModel.from_pretrained(reference, source)
        yield policy.eval()
        policy.unload()
    elif _fits(source, reference):
        yield load(source)
    else:
        yield None


def _logits(model: PreTrainedModel, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> torch.Tensor:
    """Logits of all tokens of the completions, one completion after the other, shape (tokens, vocabulary)."""
    ids = [torch.tensor(prompt + completion) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    end = torch.tensor([len(row) for row in ids])[:, None]
    start = torch.tensor([len(prompt) for prompt in prompt_ids])[:, None]
    mask = torch.arange(end.max()) < end
    kept = torch.arange(start.min(), end.max()) - 1  # a position's logits are of the next token
    logits = model(
        input_ids=pad_sequence(ids, batch_first=True).to(model.device),
        attention_mask=mask.to(model.device),
        logits_to_keep=kept.to(model.device),
    ).logits
    return logits[((kept >= start - 1) & (kept < end - 1)).to(model.device)]


def _parts(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return logits.split(_rows(logits))


def _rows(logits: torch.Tensor) -> int:
    return max(1, LOGITS // logits.shape[1])


def _sums(parts: list[torch.Tensor], completion_ids: list[list[int]]) -> list[float]:
    values = torch.cat(parts).double().cpu().split([len(ids) for ids in completion_ids])
    return [value.sum().item() for value in values]


def _is_adapter_of(source: str, folder: str) -> bool:
    """Whether `source` holds a LoRA adapter that, switched off, leaves the model in `folder` as it was."""
    if lineage(source)[1:2] not in ([(path, "main")] for path in (folder, os.path.abspath(folder))):
        return False
    config = PeftConfig.from_pretrained(source)
    return config.peft_type == "LORA" and config.bias == "none"  # trained biases stay when it is off


def _fits(source: str, reference: PreTrainedModel) -> bool:
    """Whether a model fits beside the reference, in every process. One that is no local folder, so that its size is
    not known before it is loaded, is taken to be as large as the reference."""
    gc.collect()  # the policy before this one
    state = PartialState()
    state.wait_for_everyone()
    parameters = sum(_parameters(folder) or reference.num_parameters() for folder, _ in lineage(source))
    sharing = state.num_processes if reference.device.type == "cpu" else 1
    fits = parameters * reference.dtype.itemsize <= SHARE * free_memory(reference.device) / sharing
    return all(gather_object([fits]))


def _parameters(folder: str) -> int:
    """Parameters in a folder's safetensors files; 0 where there are none."""
    count = 0
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count
