"""Do the trainers reach an optimum that is known in closed form? Bandits whose answers are one or two tokens.

make correctness
python benchmarks/correctness.py --seeds 0 1 2 3 4 --learning_rate 0.001 --output /tmp/correctness
"""

import argparse
import contextlib
import gc
import io
import itertools
import tempfile
import time
import warnings
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import datasets
import matplotlib
import numpy as np
import torch
import transformers
from datasets import Dataset
from matplotlib.figure import Figure
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, Trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig
from trl.experimental.ppo import PPOConfig, PPOTrainer

from eval.pages.figures import SVG
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.grpo import CorrectedGRPOTrainer
from rlhf_trl.kl import KLConfig, set_coefficient
from rlhf_trl.measure import machine, versions
from rlhf_trl.ppo import CorrectedPPOTrainer
from rlhf_trl.rewards import Reward

PROMPT = 0  # every prompt is this one token
STRENGTHS = (0.4, 0.6, 1.0)  # of the KL: b in E[reward] - b KL
TARGET = 0.05  # up to this total variation the optimum counts as reached
SHARES = (0.1, 0.5)  # of the training, after which the two PPO trainers are compared

# PPO and GRPO alternate between sampling a batch and EPOCHS passes over it, in MINI_BATCHES steps each.
ROUNDS, BATCH, EPOCHS, MINI_BATCHES = 30, 256, 4, 4
STEPS = ROUNDS * EPOCHS * MINI_BATCHES
GROUP = 16  # completions of one prompt in GRPO
PAIRS, PAIR_BATCH = 240_000, 256  # of DPO, which makes one pass over them
SETTINGS = {
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def joint(conditionals: list[np.ndarray]) -> np.ndarray:
    """Probabilities of answers, shape (tokens ** length,), from those of each token given the ones before it, shapes
    (tokens ** 0, tokens), (tokens ** 1, tokens) and so on. Answers are in lexical order."""
    probabilities = np.ones(1)
    for conditional in conditionals:
        probabilities = (probabilities[:, None] * conditional).ravel()
    return probabilities


class Bandit:
    """A prompt with answers of `length` tokens, whose probability under the reference and whose reward are known.

    `reference` and `reward` have the shape (answers,), in lexical order; in `grid`, (tokens,) * length, each token
    has an axis. Under the reference rewards have mean 0 and sd 1, as those of the
    recipes' reward models have.
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


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences over the last axis: 0 for equal distributions, 1 for disjoint ones."""
    return 0.5 * np.abs(p - q).sum(-1)


def prefixes(bandit: Bandit) -> list[torch.Tensor]:
    """The prompt followed by each start of an answer, of 0, 1, ... tokens, shapes (tokens ** i, 1 + i)."""
    tokens = range(len(bandit.tokens))
    return [torch.tensor([*itertools.product([PROMPT], *[tokens] * i)]) for i in range(bandit.length)]


def distribution(policy: PreTrainedModel, bandit: Bandit) -> np.ndarray:
    """The exact probabilities of a policy's answers, shape (answers,)."""
    with torch.no_grad():
        logits = [policy(ids).logits[:, -1].double() for ids in prefixes(bandit)]
    return joint([some.softmax(-1).numpy() for some in logits])


def write_reference(bandit: Bandit, folder: str, seed: int) -> None:
    """Write a GPT-2 of one layer, its head such that it answers as the bandit's reference, and its tokenizer.

    The tokenizer's special tokens are no tokens of the model, so that each answer has the bandit's length.
    """
    vocabulary = {token: i for i, token in enumerate([*bandit.tokens, "<eos>", "<pad>", "<unk>"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "padding_side": "left"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **specials).save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=len(bandit.tokens),
        n_positions=4,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        hidden = torch.cat([model.transformer(ids).last_hidden_state[:, -1] for ids in prefixes(bandit)]).double()
        logits = torch.tensor(np.log(np.concatenate(bandit.conditionals())))
        model.lm_head.weight.copy_((torch.linalg.pinv(hidden) @ logits).T)
    model.save_pretrained(folder)


class TrueReward(torch.nn.Module):
    """A bandit's reward the way reward models are called: whole by `Reward`, and by TRL's PPOTrainer its backbone, and
    `score` of the last hidden states."""

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
    if trainer is CorrectedPPOTrainer:
        own = {"frame": frame, "reward": Reward(model, frame, [], None, BATCH)}
    else:
        own = {"processing_class": frame.tokenizer, "reward_model": model}
    return trainer(
        args=args,
        model=policy,
        ref_model=None,
        **own,
        value_model=AutoModelForSequenceClassification.from_pretrained(policy.name_or_path, num_labels=1),
        train_dataset=Dataset.from_dict({"input_ids": [[PROMPT]] * args.total_episodes}),
    )


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


class PairTrainer(DPOTrainer):
    """DPOTrainer made fast for very many very short answers: its rows are token ids, which TRL need not make of text,
    and log-probabilities are computed without TRL's loop over the rows."""

    def _prepare_dataset(self, dataset: Dataset, *_) -> Dataset:
        return dataset

    def compute_loss(self, *args, **kwargs):
        with patch("trl.trainer.dpo_trainer.selective_log_softmax", log_probabilities):
            return super().compute_loss(*args, **kwargs)


def log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Those of the ids, shape (rows, length), under logits of shape (rows, length, tokens)."""
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def collate(pairs: list[dict]) -> dict[str, torch.Tensor]:
    """What TRL's collator makes of answers of one length, in a fraction of its time."""
    ids = torch.tensor([[PROMPT, *pair[answer]] for answer in ("chosen_ids", "rejected_ids") for pair in pairs])
    answers = torch.ones_like(ids)
    answers[:, 0] = 0
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": answers}


def dpo(bandit: Bandit, policy: PreTrainedModel, strength: float, rounds: int, settings: dict) -> Trainer:
    """DPO on pairs of the reference's answers, preferred with Bradley and Terry's probability."""
    rng = np.random.default_rng(settings["seed"])
    pairs = rng.choice(len(bandit.reference), (PAIRS * rounds // ROUNDS, 2), p=bandit.reference)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    first, second = bandit.reward[pairs].T
    lost = rng.random(len(pairs)) > 1 / (1 + np.exp(second - first))
    pairs[lost] = pairs[lost, ::-1]
    chosen, rejected = np.stack(np.unravel_index(pairs.T, bandit.grid), -1).tolist()
    rows = {"prompt_ids": [[PROMPT]] * len(pairs), "chosen_ids": chosen, "rejected_ids": rejected}
    args = DPOConfig(**settings, num_train_epochs=1, per_device_train_batch_size=PAIR_BATCH, beta=strength)
    return PairTrainer(policy, args=args, train_dataset=Dataset.from_dict(rows), data_collator=collate)


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
    """Records a policy's answers before training and after each step."""

    def __init__(self, bandit: Bandit, policy: PreTrainedModel) -> None:
        self.bandit, self.policy, self.shares, self.policies = bandit, policy, [], []
        self.record(0.0)

    def record(self, share: float) -> None:
        self.shares.append(share)
        self.policies.append(distribution(self.policy, self.bandit))

    def on_step_end(self, args, state, control, **_) -> None:
        self.record(state.global_step / state.max_steps)


def train(name: str, method: str, strength: float, seed: int, rounds: int = ROUNDS, learning_rate: float = 3e-3) -> Run:
    """Train the reference of a bandit with one of `METHODS` for `rounds` batches of samples."""
    bandit = BANDITS[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write_reference(bandit, folder, seed)
        transformers.set_seed(seed)
        policy = transformers.AutoModelForCausalLM.from_pretrained(folder)
        settings = SETTINGS | {"output_dir": folder, "seed": seed, "learning_rate": learning_rate}
        trainer = METHODS[method](bandit, policy, strength, rounds, settings)
        recorder = Recorder(bandit, policy)
        trainer.add_callback(recorder)
        gc.freeze()  # PPO collects garbage twice a round; what the imports made would take most of its time
        trainer.train()
    steps = max(int(state["step"]) for state in trainer.optimizer.state.values())
    return Run(name, method, strength, seed, recorder.shares, np.array(recorder.policies), steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # DPO's number of pairs and batches were chosen on the seeds 0 to 2
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of all methods, at the start")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="gets correctness.md and .svg")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a model gains nothing from more
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()

    start, runs = time.perf_counter(), []
    for (bandit, methods), strength in itertools.product(METHODS_OF.items(), STRENGTHS):
        for method, seed in itertools.product(methods, args.seeds):
            run = train(bandit, method, strength, seed, learning_rate=args.learning_rate)
            runs.append(run)
            seconds = time.perf_counter() - start
            print(
                f"{seconds:4.0f} s: {bandit}, b {strength}, {method}, seed {seed}: TV {run.distance():.3f}", flush=True
            )
    plot(runs, args.output / "correctness.svg")
    page = args.output / "correctness.md"
    page.write_text(describe(runs, args.learning_rate, seconds))
    print(f"The result is in {page}")


def describe(runs: list[Run], learning_rate: float, seconds: float) -> str:
    """The page on some runs of all methods, in Markdown; what it claims depends on them."""
    seeds = " ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    one, two = ([run for run in runs if run.bandit == bandit] for bandit in BANDITS)
    header = """\
| b | policy | TV, mean | TV, largest | KL from the reference (nats) | E[reward] | E[reward] - b KL |
|---|---|---|---|---|---|---|"""
    return f"""# Correctness: the trainers against a known optimum

A policy answers one fixed prompt, and each answer has a fixed reward. Rewards have mean 0 and sd 1 under the reference.
PPO, GRPO and DPO are to maximise E[reward] - b KL(policy || reference), with one b for all three:

- PPO's `kl_coef` is b.
- GRPO's `beta` is b (G - 1) / G. GRPO subtracts from a reward the mean of a group of G answers, which holds this reward
  itself. That shrinks the gradient of the reward by (G - 1) / G, and `beta` has to shrink the KL's alike.
- DPO's `beta` is b, as the rewards behind the preferences have an sd of 1.

The recipes do the same with their `kl_strength`, for PPO and GRPO by the function that is tested here.

The objective is a constant minus b KL(policy || optimum) with

    optimum(answer) = reference(answer) exp(reward(answer) / b) / normaliser

and so has this one solution. How far a policy ends from it, in total variation (TV), is computed exactly from its
probabilities of all answers. The optimum counts as reached up to a TV of {TARGET}.

![The answers' probabilities, and the distance from the optimum during training](correctness.svg)

## Answers of one token

{claims(one)}

{steps(one)}

{header}
{table(one)}

## Answers of two tokens

Here it matters how credit and KL are shared among the tokens. There are 16 answers. The first token decides how much
depends on the second: of four, the first has the best mean reward, the last the best single answer. These rewards were
chosen so that GRPO's limit, below, is far from the optimum: how far it is elsewhere depends on the rewards.

{claims(two)}

{limits(two)}

{header}
{table(two)}

Mean and largest TV from the optimum of the same b are over the seeds {seeds}; the other columns are means.

## How it was made

    python benchmarks/correctness.py --seeds {seeds} --learning_rate {learning_rate}

- The policy is a GPT-2 of one layer and width 16, one for each seed, with a head that makes it the reference.
- PPO and GRPO: {ROUNDS * BATCH:,} samples in {ROUNDS} rounds, {EPOCHS} passes of {MINI_BATCHES} steps over each, ratios
  clipped at {PPOConfig.cliprange} and {GRPOConfig.epsilon}; GRPO in groups of {GROUP}, rewards not divided by their sd.
- DPO: one pass over {PAIRS:,} pairs of the reference's answers, less those of equal answers, in batches of
  {PAIR_BATCH}, both chosen on the seeds 0 to 2. The preferred one is drawn with Bradley and Terry's probability. As
  these labels are random, DPO's limit is the optimum only with infinitely many pairs: there are
  {PAIRS / (ROUNDS * BATCH):.0f} times as many as samples.
- All: AdamW, learning rate {learning_rate}, falling linearly to zero; gradients clipped at a norm of
  {SETTINGS["max_grad_norm"]}, which TRL's PPOTrainer leaves out.
- {date.today()}, {seconds:.0f} s on one thread of {machine()["cpu"]};
  {", ".join(f"{name} {version}" for name, version in versions().items())}.

No reward model errs here, and no answer ends early.
"""


def claims(runs: list[Run]) -> str:
    """Which methods reach the optimum in the runs on one bandit, as a Markdown list."""
    lines = []
    for method in METHODS_OF[runs[0].bandit]:
        some = [run for run in runs if run.method == method]
        missed = [f"b {run.strength}, seed {run.seed}" for run in some if run.distance() > TARGET]
        verdict = f"reaches the optimum in all of {len(some)} runs"
        if missed:
            verdict = f"misses the optimum in {len(missed)} of {len(some)} runs ({'; '.join(missed)})"
        lines.append(f"- **{method}** {verdict}; largest TV {max(run.distance() for run in some):.3f}.")
    return "\n".join(lines)


def steps(runs: list[Run]) -> str:
    """How the two PPO trainers differ, in Markdown."""
    pair = {name: [run for run in runs if run.method == name] for name in (CORRECTED, PLAIN)}
    ours, theirs = (np.mean([run.steps for run in some]) for some in pair.values())
    lines = [
        f"""\
By their settings both PPO trainers take {STEPS} optimizer steps: the corrected one took {ours:.0f}, TRL's {theirs:.0f}.
TRL takes one step per pass over a batch, whatever the number of mini-batches, which makes {ROUNDS * EPOCHS}; but in the
last batch of each pass over the data (here there is one) it steps after every micro-batch."""
    ]
    for share in SHARES:
        means = {name: np.mean([run.distance(share) for run in some]) for name, some in pair.items()}
        near, far = sorted(means, key=means.get)
        lines.append(
            f"After {share:.0%} of the samples {near} is nearer: mean TV {means[near]:.3f} against {means[far]:.3f}."
        )
    return "\n".join(lines)


def limits(runs: list[Run]) -> str:
    """Why GRPO ends where it does when answers have two tokens, in Markdown."""
    bandit, some = BANDITS[runs[0].bandit], [run for run in runs if run.method == "GRPO"]
    gaps = [total_variation(bandit.grpo_limit(b), bandit.optimum(b)) for b in STRENGTHS]
    off = ", ".join(f"{gap:.3f} (b {b})" for gap, b in zip(gaps, STRENGTHS, strict=True))
    rest = np.mean([total_variation(run.policies[-1], bandit.grpo_limit(run.strength)) for run in some])
    return f"""\
GRPO has another limit. The KL is a term of its loss at each token, given the tokens before it, and no gradient of it
goes to those: a first token gets the whole answer's reward, but pays for its own KL only. PPO has the KL in the reward,
which it sums over all later tokens. So GRPO's limit is

    limit(first) = reference(first) exp(E[reward | first] / b) / normaliser

where the optimum has E[reward | first] - b KL(second | first), and the second token as the optimum has it. That prefers
first tokens whose reward takes much KL to come by. It lies {off} from the optimum;
GRPO ends {rest:.3f} from its limit and {np.mean([run.distance() for run in some]):.3f} from the optimum, on average.
DPO compares the probabilities of whole answers and has the optimum as its limit."""


def table(runs: list[Run]) -> str:
    """A Markdown row for the reference, the optimum and each method on one bandit, by b."""
    name, lines = runs[0].bandit, []
    bandit = BANDITS[name]
    for b in STRENGTHS:
        policies = {"reference": [bandit.reference], "optimum": [bandit.optimum(b)]}
        if bandit.length > 1:
            policies["GRPO's limit"] = [bandit.grpo_limit(b)]
        policies |= {
            method: [run.policies[-1] for run in runs if (run.method, run.strength) == (method, b)]
            for method in METHODS_OF[name]
        }
        for policy, some in policies.items():
            distances = total_variation(np.array(some), bandit.optimum(b))
            means = np.mean([(bandit.kl(p), p @ bandit.reward, bandit.objective(p, b)) for p in some], 0)
            numbers = [distances.mean(), distances.max(), *means]
            lines.append(f"| {b} | {policy} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    return "\n".join(lines)


def plot(runs: list[Run], path: Path) -> None:
    """Draw the final policies beside reference and optimum, and their distance during training; bars span the seeds."""
    figure = Figure(figsize=(5 * len(STRENGTHS), 6 * len(BANDITS)), layout="constrained")
    axes = figure.subplots(2 * len(BANDITS), len(STRENGTHS), sharey="row")
    shares = np.linspace(0, 1, ROUNDS + 1)
    for (row, name), (column, b) in itertools.product(enumerate(BANDITS), enumerate(STRENGTHS)):
        bandit, (answers, distances) = BANDITS[name], axes[2 * row : 2 * row + 2, column]
        x = np.arange(len(bandit.reference))
        answers.bar(x, bandit.reference, 0.9, color="0.85", label="reference")
        answers.hlines(bandit.optimum(b), x - 0.45, x + 0.45, color="black", label="optimum")
        for i, method in enumerate(METHODS):
            some = [run for run in runs if (run.bandit, run.method, run.strength) == (name, method, b)]
            if not some:
                continue
            style = {"color": f"C{i}", "label": method}
            low, mean, high = _spread([run.policies[-1] for run in some])
            answers.errorbar(x + 0.2 * i - 0.3, mean, (mean - low, high - mean), fmt="o", markersize=3, **style)
            low, mean, high = _spread([run.distance(shares) for run in some])
            distances.plot(shares, mean, **style)
            distances.fill_between(shares, low, high, alpha=0.2, color=f"C{i}")
        distances.axhline(TARGET, color="grey", linestyle="--")
        answers.set(title=f"{name}, b = {b}", ylabel="probability")
        answers.set_xticks(x, bandit.answers, fontsize="small")
        distances.set(xlabel="share of the training", ylabel="TV from the optimum", yscale="log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 + len(METHODS))
    with matplotlib.rc_context(SVG):
        figure.savefig(path, metadata={"Date": None})


def _spread(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest, mean and largest over the runs."""
    return np.min(values, 0), np.mean(values, 0), np.max(values, 0)


if __name__ == "__main__":
    main()
