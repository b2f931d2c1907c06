"""Sampling replies and measuring their log-probabilities, in batches of prompts of like length."""

from collections.abc import Iterator

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    progress: str,
) -> list[list[int]]:
    """One completion a prompt from the model's own distribution (temperature 1, nothing cut off).

    Returns token ids, in the order of the prompts; eos is the last of a completion that finished.
    """
    set_seed(seed)
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    completions: list[list[int]] = [[] for _ in prompt_ids]
    for batch in _batches([len(ids) for ids in prompt_ids], batch_size, progress):
        inputs = tokenizer.pad({"input_ids": [prompt_ids[i] for i in batch]}, return_tensors="pt").to(model.device)
        output = model.generate(**inputs, generation_config=settings)
        for i, ids in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            completions[i] = ids[:end]
    return completions


@torch.no_grad()
def log_probabilities(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    batch_size: int,
    progress: str,
) -> torch.Tensor:
    """log pi(completion | prompt) in nats, summed over the completion's tokens; float32, one a prompt."""
    sums = torch.zeros(len(prompt_ids))
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    for batch in _batches(lengths, batch_size, progress):
        ids = pad_sequence([torch.tensor(prompt_ids[i] + completion_ids[i]) for i in batch], batch_first=True)
        position = torch.arange(ids.shape[1])
        end = torch.tensor([lengths[i] for i in batch]).unsqueeze(1)
        start = torch.tensor([len(prompt_ids[i]) for i in batch]).unsqueeze(1)
        logits = model(input_ids=ids.to(model.device), attention_mask=(position < end).to(model.device)).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None].to(model.device)).squeeze(-1).cpu()
        of_completion = (position >= start) & (position < end)
        sums[batch] = (logps * of_completion[:, 1:]).sum(1)
    return sums


def _batches(lengths: list[int], batch_size: int, progress: str) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    with tqdm(total=len(order), desc=progress) as bar:
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]
            bar.update(len(order[start : start + batch_size]))
