"""One reward-model input everywhere, and centred scores."""

import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import GRPOConfig
from trl.experimental.utils import get_reward
from trl.trainer.reward_trainer import DataCollatorForPreference

from rlhf_trl.config import DataConfig
from rlhf_trl.grpo import CorrectedGRPOTrainer
from rlhf_trl.ppo import CorrectedPPOTrainer
from rlhf_trl.rewards import Reward, load_reward_model, score


@pytest.fixture(params=["model", "gpt2"])
def scorer(request, world, tmp_path):
    """An (untrained) reward model folder of either architecture, loaded, with its frame."""
    tokenizer = AutoTokenizer.from_pretrained(world / request.param, padding_side="left")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(world / request.param, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.reward_mean, model.config.reward_std = 0.7, 1.9
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    return load_reward_model(str(tmp_path / "reward"), DataConfig(str(world / "data")), seed=0)


def triples(tokenizer):
    """64 of them: prompts and completions short and long, every second one finished."""
    rng = random.Random(0)
    words = [token for token in range(10, len(tokenizer)) if token not in tokenizer.all_special_ids]
    for i in range(64):
        prompt = "\n\nHuman: " + "Which city governs Spain? " * rng.choice([1, 2, 4]) + "\n\nAssistant:"
        completion = rng.choices(words, k=rng.choice([1, 2, 7, 15]))
        yield prompt, completion + [tokenizer.eos_token_id] * (i % 2)


def test_the_same_triples_score_the_same_everywhere(scorer):
    model, frame = scorer
    tokenizer = frame.tokenizer
    rows = list(triples(tokenizer))
    prompts = [frame.prompt_ids(prompt) for prompt, _ in rows]
    completions = [completion for _, completion in rows]
    sequences = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]

    evaluation = score(model, sequences, batch_size=16)
    alone = torch.cat([score(model, [sequence]) for sequence in sequences])
    reward = Reward(model, frame, frame.rest, missing_eos_penalty=None, batch_size=16)
    grpo = reward(prompts, completions)

    # reward training: TRL's collator and the model's own forward pass
    batch = DataCollatorForPreference(tokenizer.pad_token_id)(
        [{"chosen_ids": a, "rejected_ids": b} for a, b in zip(sequences[::2], sequences[1::2], strict=True)]
    )
    with torch.no_grad():
        halves = model(**batch).logits.squeeze(-1).chunk(2)
    training = torch.stack(halves, 1).flatten()

    # PPO and its value model: prompts padded on the left, responses on the right; and TRL's own reward function
    queries = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    responses = torch.full((64, max(map(len, completions)) + 1), tokenizer.pad_token_id)
    for i, completion in enumerate(completions):
        responses[i, : len(completion)] = torch.tensor(completion)
    context = queries["input_ids"].shape[1]
    rollout = torch.cat([queries["input_ids"], responses], 1), tokenizer.pad_token_id, context
    trainer = SimpleNamespace(reward=reward, frame=frame, finished=0)
    ppo = CorrectedPPOTrainer._get_reward(trainer, model, *rollout)[1]
    with torch.no_grad():
        value = get_reward(model, *rollout)[1]
    assert trainer.finished == 32

    assert evaluation.std() > 0.01  # else the comparison would show nothing
    for other in (alone, grpo, training, ppo, value):
        torch.testing.assert_close(other, evaluation, atol=1e-4, rtol=0)
    unfinished = score(model, [sequence[:-1] for sequence in sequences[1::2]])
    assert (unfinished - evaluation[1::2]).abs().max() > 1e-2  # eos is seen


def test_grpo_hands_over_the_ids_with_eos_where_it_was_sampled(scorer, tmp_path, world):
    _, frame = scorer
    eos, prompt, seen = frame.tokenizer.eos_token_id, "\n\nHuman: Hi\n\nAssistant:", []

    def reward(prompt_ids, completion_ids):
        assert prompt_ids == [frame.prompt_ids(prompt)] * 32
        seen.extend(completion_ids)
        return torch.zeros(len(completion_ids))

    policy = AutoModelForCausalLM.from_pretrained(world / "model")
    with torch.no_grad():  # make the policy likely to stop
        policy.get_output_embeddings().weight[eos] *= 3
    CorrectedGRPOTrainer(
        frame=frame,
        reward=reward,
        model=policy,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=32,
            max_completion_length=12,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": [prompt] * 8}),
    ).train()
    finished = [ids[-1] == eos for ids in seen]
    assert 0 < sum(finished) < 32
    assert all(done or len(ids) == 12 for ids, done in zip(seen, finished, strict=True))
    assert all(eos not in ids[:-1] for ids in seen)


def test_a_missing_end_costs_the_penalty(scorer):
    """Which PPO does not subtract again (tests/test_ppo.py)."""
    model, frame = scorer
    prompt, ids = frame.prompt_ids("\n\nHuman: Hi\n\nAssistant:"), [[20, frame.end[-1]], [20]]
    free, charged = (Reward(model, frame, [], penalty, 2)([prompt] * 2, ids).tolist() for penalty in (None, 1.5))
    assert charged == pytest.approx([free[0], free[1] - 1.5])


def test_scores_are_standardised(scorer):
    model, frame = scorer
    raw = AutoModelForSequenceClassification.from_pretrained(model.name_or_path).eval()
    sequences = [frame.prompt_ids(prompt) + completion for prompt, completion in triples(frame.tokenizer)]
    torch.testing.assert_close(score(model, sequences), (score(raw, sequences) - 0.7) / 1.9)


def test_reward_training_ends_replies_in_eos(scorer):
    _, frame = scorer
    (row,) = frame.rows([{"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " a", "rejected": " b"}])
    for side in ("chosen_ids", "rejected_ids"):
        assert row[side][-1] == frame.tokenizer.eos_token_id
        assert row[side].count(frame.tokenizer.eos_token_id) == 1
