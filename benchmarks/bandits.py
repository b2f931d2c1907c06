"""Bandits whose best policy is known in closed form, and the trainers that are to find it."""

import contextlib
import gc
import io
import itertools
import tempfile
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, Trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig
from trl.experimental.ppo import PPOConfig, PPOTrainer

from rlhf_trl.frame_loading import load_frame
from rlhf_trl.grpo import CorrectedGRPOTrainer
from rlhf_trl.kl import KLConfig, set_coefficient
from rlhf_trl.ppo import CorrectedPPOTrainer
from rlhf_trl.rewards import Reward

PROMPT = 0  # every prompt is this one token
STRENGTHS = (0.4, 0.6, 1.0)  # of the KL: b in E[reward] - b KL

# PPO and GRPO alternate between sampling a batch and EPOCHS passes over it, in MINI_BATCHES steps each.
ROUNDS, BATCH, EPOCHS, MINI_BATCHES = 30, 256, 4, 4
GROUP = 16  # completions of one prompt in GRPO
PAIRS, PAIR_BATCH = 240_000, 256  # of DPO, which makes one pass over them; chosen on the seeds 0 to 2
MAX_GRAD_NORM = 1.0


class Bandit:
    """A prompt with answers of `length` tokens, whose probability under the reference and whose reward are known.

    `reference` and `reward` are given with an axis for each token and kept flat, (answers,), in lexical order. Rewards
    are scaled to mean 0 and sd 1 under the reference, as those of the recipes' reward models are.
    """

    def __init__(self, reference: np.ndarray, reward: np.ndarray) -> None:
        self.grid, self.length = reference.shape, reference.ndim
        self.tokens = [*"abcdefghi"[: len(reference)]]
        self.answers = ["".join(answer) for answer in itertools.product(self.tokens, repeat=self.length)]
        self.reference, reward = reference.ravel() / reference.sum(), reward.ravel()
        centred = reward - self.reference @ reward
        self.reward = centred / np.sqrt(self.reference @ centred**2)

    def optimum(self, strength: float) -> np.ndarray:
        """The policy that maximises `objective`, shape (answers,)."""
        weights = self.reference * np.exp(self.reward / strength)
        return weights / weights.sum()

    def objective(self, policy: np.ndarray, strength: float) -> float:
        """E[reward] - strength KL(policy || reference) of a policy of shape (answers,)."""
        return policy @ self.reward - strength * self.kl(policy)

    def kl(self, policy: np.ndarray) -> float:
        """KL(policy || reference) in nats."""
        return policy @ np.log(policy / self.reference)

    def conditionals(self) -> list[np.ndarray]:
        """The reference's probabilities of each token given those before it, as `joint` takes them."""
        size = len(self.tokens)
        sums = [self.reference.reshape(size**i, size, -1).sum(-1) for i in range(self.length)]
        return [some / some.sum(-1, keepdims=True) for some in sums]

    def grpo_limit(self, strength: float) -> np.ndarray:
        """The optimum for a policy that does not count how a token changes the KL of later ones, shape (answers,)."""
        chosen, value = [], self.reward
        for reference in reversed(self.conditionals()):
            value = value.reshape(reference.shape)
            weights = reference * np.exp(value / strength)
            chosen.insert(0, weights / weights.sum(-1, keepdims=True))
            value = (chosen[0] * value).sum(-1)
        return joint(chosen)

    def prefixes(self) -> list[torch.Tensor]:
        """The prompt followed by each start of an answer, of 0, 1, ... tokens, shapes (tokens ** i, 1 + i)."""
        tokens = range(len(self.tokens))
        return [torch.tensor([*itertools.product([PROMPT], *[tokens] * i)]) for i in range(self.length)]


BANDITS = {
    "one token": Bandit(
        np.array([0.24, 0.20, 0.15, 0.12, 0.10, 0.07, 0.05, 0.04, 0.03]),
        np.array([0, -1, 0.5, 1, -0.5, 1.5, -1, 2, 0]),
    ),
    # The later the first token (a row) in the alphabet, the more the reward depends on the second
    "two tokens": Bandit(
        np.full((4, 4), 1 / 16), np.array([[1, 1, 1, 1], [0, 0, 1, 1], [-1, 0, 1, 2], [-2, -1, 0, 3]])
    ),
}


def joint(conditionals: list[np.ndarray]) -> np.ndarray:
    """Probabilities of answers, (tokens ** length,), from those of a token given i before it, (tokens ** i, tokens)."""
    probabilities = np.ones(1)
    for conditional in conditionals:
        probabilities = (probabilities[:, None] * conditional).ravel()
    return probabilities


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences over the last axis: 0 for equal distributions, 1 for disjoint ones."""
    return 0.5 * np.abs(p - q).sum(-1)


def write_reference(bandit: Bandit, folder: str, seed: int) -> None:
    """Write a GPT-2 of one layer, its head such that it answers as the bandit's reference, and its tokenizer.

    The tokenizer's special tokens are no tokens of the model, so that each answer has the bandit's length.
    """
    vocabulary = {token: i for i, token in enumerate([*bandit.tokens, "<eos>", "<pad>", "<unk>"])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "padding_side": "left"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **specials).save_pretrained(folder)
    torch.manual_seed(seed)
    size = {"vocab_size": len(bandit.tokens), "n_positions": 4, "n_embd": 16, "n_layer": 1, "n_head": 2}
    head = {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, **head, initializer_range=0.1)).eval()
    with torch.no_grad():
        states = [model.transformer(ids).last_hidden_state[:, -1] for ids in bandit.prefixes()]
        logits = torch.tensor(np.log(np.concatenate(bandit.conditionals())))
        model.lm_head.weight.copy_((torch.linalg.pinv(torch.cat(states).double()) @ logits).T)
    model.save_pretrained(folder)


class TrueReward(torch.nn.Module):
    """A bandit's reward as reward models are called: by `Reward` whole, by TRL's PPOTrainer backbone and `score`."""

    base_model_prefix = "backbone"
    device = torch.device("cpu")
    config = PreTrainedConfig(pad_token_id=0)  # of sequences of one length, which need no padding

    def __init__(self, bandit: Bandit) -> None:
        super().__init__()
        self.reward = torch.tensor(bandit.reward.reshape(bandit.grid), dtype=torch.float32)
        self.score = torch.nn.Identity()

    def backbone(self, input_ids: torch.Tensor, **_) -> SimpleNamespace:
        """The reward of each row, at all of its positions, as hidden states of shape (rows, length, 1)."""
        reward = self.reward[tuple(input_ids[:, 1:].T)]
        return SimpleNamespace(hidden_states=[reward[:, None, None].expand(*input_ids.shape, 1)])

    def forward(self, input_ids: torch.Tensor, **_) -> SimpleNamespace:
        """The same once a row, as logits of shape (rows, 1)."""
        return SimpleNamespace(logits=self.backbone(input_ids).hidden_states[-1][:, -1])


def ppo(
    trainer: type[PPOTrainer], bandit: Bandit, policy: PreTrainedModel, strength: float, rounds: int, settings: dict
) -> Trainer:
    """PPO, whose reward holds the KL."""
    args = PPOConfig(
        **settings,
        total_episodes=rounds * BATCH,
        per_device_train_batch_size=BATCH // MINI_BATCHES,
        gradient_accumulation_steps=MINI_BATCHES,
        num_mini_batches=MINI_BATCHES,
        num_ppo_epochs=EPOCHS,
        local_rollout_forward_batch_size=BATCH,
        response_length=bandit.length,
        temperature=1.0,
        kl_coef=None,
        num_sample_generations=0,
    )
    set_coefficient(KLConfig(strength), args, default=0.0)
    frame, model = load_frame(policy.name_or_path), TrueReward(bandit)
    models = {"processing_class": frame.tokenizer, "reward_model": model}
    if trainer is CorrectedPPOTrainer:
        models = {"frame": frame, "reward": Reward(model, frame, [], None, BATCH)}
    models["value_model"] = AutoModelForSequenceClassification.from_pretrained(policy.name_or_path, num_labels=1)
    prompts = Dataset.from_dict({"input_ids": [[PROMPT]] * args.total_episodes})
    return trainer(args=args, model=policy, ref_model=None, train_dataset=prompts, **models)


def grpo(bandit: Bandit, policy: PreTrainedModel, strength: float, rounds: int, settings: dict) -> Trainer:
    """GRPO, whose loss holds the KL."""
    args = GRPOConfig(
        **settings,
        max_steps=rounds * EPOCHS * MINI_BATCHES,
        per_device_train_batch_size=BATCH // MINI_BATCHES,
        steps_per_generation=MINI_BATCHES,
        num_iterations=EPOCHS,
        num_generations=GROUP,
        max_completion_length=bandit.length,
        beta=None,
        scale_rewards="none",
        disable_dropout=True,
    )
    set_coefficient(KLConfig(strength), args, default=0.0)
    frame = load_frame(policy.name_or_path)
    reward = Reward(TrueReward(bandit), frame, [], None, BATCH)
    prompts = Dataset.from_dict({"prompt": [bandit.tokens[PROMPT]] * (rounds * BATCH // GROUP)})
    return CorrectedGRPOTrainer(frame=frame, reward=reward, model=policy, args=args, train_dataset=prompts)


def dpo(bandit: Bandit, policy: PreTrainedModel, strength: float, rounds: int, settings: dict) -> Trainer:
    """DPO on pairs of the reference's answers, preferred with Bradley and Terry's probability."""
    rng = np.random.default_rng(settings["seed"])
    pairs = rng.choice(len(bandit.reference), (PAIRS * rounds // ROUNDS, 2), p=bandit.reference)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    first, second = bandit.reward[pairs].T
    lost = rng.random(len(pairs)) > 1 / (1 + np.exp(second - first))
    pairs[lost] = pairs[lost, ::-1]
    chosen, rejected = np.stack(np.unravel_index(pairs.T, bandit.grid), -1).tolist()
    rows = Dataset.from_dict({"prompt_ids": [[PROMPT]] * len(pairs), "chosen_ids": chosen, "rejected_ids": rejected})
    args = DPOConfig(**settings, num_train_epochs=1, per_device_train_batch_size=PAIR_BATCH, beta=strength)
    return DPOTrainer(policy, args=args, train_dataset=rows, data_collator=collate)


def collate(pairs: list[dict]) -> dict[str, torch.Tensor]:
    """What TRL's collator makes of answers of one length, in a fraction of its time."""
    ids = torch.tensor([[PROMPT, *pair[answer]] for answer in ("chosen_ids", "rejected_ids") for pair in pairs])
    answers = torch.ones_like(ids)
    answers[:, 0] = 0
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": answers}


def log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Those of the ids, shape (rows, length), under logits of shape (rows, length, tokens), without TRL's loop."""
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


CORRECTED, PLAIN = "corrected PPO", "TRL's own PPO"
METHODS = {CORRECTED: partial(ppo, CorrectedPPOTrainer), PLAIN: partial(ppo, PPOTrainer), "GRPO": grpo, "DPO": dpo}
# Of TRL's own PPO only the steps are of interest
METHODS_OF = {"one token": [*METHODS], "two tokens": [method for method in METHODS if method != PLAIN]}


@dataclass
class Run:
    """One training: the policy at each share of it, shape (points, answers), and the optimizer's steps."""

    bandit: str
    method: str
    strength: float
    seed: int
    shares: list[float]
    policies: np.ndarray
    steps: int

    def distance(self, share: float | np.ndarray = 1.0) -> float | np.ndarray:
        """Total variation from the optimum after a share of the training."""
        optimum = BANDITS[self.bandit].optimum(self.strength)
        return np.interp(share, self.shares, total_variation(self.policies, optimum))


class Recorder(transformers.TrainerCallback):
    """Records the exact probabilities of a policy's answers, before training and after each step."""

    def __init__(self, bandit: Bandit, policy: PreTrainedModel) -> None:
        self.bandit, self.policy, self.shares, self.policies = bandit, policy, [], []
        self.record(0.0)

    @torch.no_grad()
    def record(self, share: float) -> None:
        logits = [self.policy(ids).logits[:, -1].double() for ids in self.bandit.prefixes()]
        self.shares.append(share)
        self.policies.append(joint([some.softmax(-1).numpy() for some in logits]))

    def on_step_end(self, args, state, control, **_) -> None:
        self.record(state.global_step / state.max_steps)


def train(name: str, method: str, strength: float, seed: int, rounds: int = ROUNDS, learning_rate: float = 3e-3) -> Run:
    """Train the reference of a bandit with one of `METHODS` for `rounds` batches of samples."""
    bandit = BANDITS[name]
    settings = {"seed": seed, "learning_rate": learning_rate, "lr_scheduler_type": "linear"}
    settings |= {"max_grad_norm": MAX_GRAD_NORM, "gradient_checkpointing": False, "use_cpu": True, "bf16": False}
    settings |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    ids_as_they_are = patch.object(DPOTrainer, "_prepare_dataset", lambda self, rows, *_: rows)
    fast = patch("trl.trainer.dpo_trainer.selective_log_softmax", log_probabilities)
    silence = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, ids_as_they_are, fast, silence:
        write_reference(bandit, folder, seed)
        transformers.set_seed(seed)
        policy = transformers.AutoModelForCausalLM.from_pretrained(folder)
        trainer = METHODS[method](bandit, policy, strength, rounds, settings | {"output_dir": folder})
        recorder = Recorder(bandit, policy)
        trainer.add_callback(recorder)
        gc.freeze()  # PPO collects garbage twice a round; what the imports made would take most of its time
        trainer.train()
    steps = max(int(state["step"]) for state in trainer.optimizer.state.values())
    return Run(name, method, strength, seed, recorder.shares, np.array(recorder.policies), steps)
