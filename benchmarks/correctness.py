"""Do the trainers reach an optimum that is known in closed form? A bandit whose answers are single tokens.

make correctness
python benchmarks/correctness.py --seeds 0 1 2 3 4 --learning_rate 0.001 --output /tmp/correctness
"""

import argparse
import contextlib
import gc
import io
import tempfile
import time
import warnings
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import matplotlib
import numpy as np
import torch
import transformers
from datasets import Dataset
from matplotlib.figure import Figure
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, Trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from trl.experimental.ppo import PPOConfig, PPOTrainer

from eval.figures import SVG
from rlhf_trl.measure import machine, versions
from rlhf_trl.ppo import CorrectedPPOTrainer

TOKENS = [*"abcdefgh", "<eos>", "<pad>"]
REWARD = np.array([0, -1, 0.5, 1, -0.5, 1.5, -1, 2, 0, 0])
# PPO does not take padding for an answer, so that must not be sampled, and Adam must not see its gradient
REFERENCE = np.array([0.24, 0.20, 0.15, 0.12, 0.10, 0.07, 0.05, 0.04, 0.03, 1e-15])
PROMPT = 0  # every prompt is this one token
BETAS = (0.6, 1.0)
TARGET = 0.1  # up to this total variation the optimum counts as reached
SHARES = (0.1, 0.5)  # of the training, after which the two PPO trainers are compared

# PPO and GRPO alternate between sampling a batch and EPOCHS passes over it, in MINI_BATCHES steps each.
# DPO makes EPOCHS passes over pairs of as many samples.
ROUNDS, BATCH, EPOCHS, MINI_BATCHES = 30, 256, 4, 4
STEPS = ROUNDS * EPOCHS * MINI_BATCHES
GROUP = 16  # completions of one prompt in GRPO
SETTINGS = {
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": BATCH // MINI_BATCHES,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def optimum(beta: float) -> np.ndarray:
    """The policy that maximises E[reward] - beta KL(policy || reference), shape (tokens,)."""
    weights = REFERENCE * np.exp(REWARD / beta)
    return weights / weights.sum()


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences over the last axis: 0 for equal distributions, 1 for disjoint ones."""
    return 0.5 * np.abs(p - q).sum(-1)


def distribution(policy: PreTrainedModel) -> np.ndarray:
    """The exact probabilities of a policy's answers, shape (tokens,)."""
    with torch.no_grad():
        return policy(torch.tensor([[PROMPT]])).logits[0, -1].double().softmax(-1).numpy()


def write_reference(folder: str, seed: int) -> None:
    """Write a Llama of one layer, its head such that `REFERENCE` is what it answers, and its tokenizer."""
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"eos_token": "<eos>", "pad_token": "<pad>", "padding_side": "left"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **specials)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS),
        max_position_embeddings=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        hidden = model.model(torch.tensor([[PROMPT]])).last_hidden_state[0, -1]
        logits = torch.tensor(np.log(REFERENCE), dtype=hidden.dtype)
        model.lm_head.weight.copy_(torch.outer(logits, hidden / hidden.square().sum()))
    model.save_pretrained(folder)


class TrueReward(torch.nn.Module):
    """`REWARD` the way PPOTrainer calls a reward model: a backbone, and `score` of its last hidden states."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Linear(len(TOKENS), 1, bias=False)
        self.score.weight.data = torch.tensor(REWARD[None], dtype=torch.float32)

    def backbone(self, input_ids: torch.Tensor, **_) -> SimpleNamespace:
        """One-hot hidden states, shape (rows, length, tokens)."""
        return SimpleNamespace(hidden_states=[torch.nn.functional.one_hot(input_ids, len(TOKENS)).float()])


def ppo(trainer: type[PPOTrainer], policy: PreTrainedModel, beta: float, rounds: int, settings: dict) -> Trainer:
    """PPO with beta as the coefficient of the KL in its reward."""
    args = PPOConfig(
        **settings,
        total_episodes=rounds * BATCH,
        gradient_accumulation_steps=MINI_BATCHES,
        num_mini_batches=MINI_BATCHES,
        num_ppo_epochs=EPOCHS,
        local_rollout_forward_batch_size=BATCH,
        response_length=1,
        temperature=1.0,
        kl_coef=beta,
        num_sample_generations=0,
    )
    return trainer(
        args=args,
        processing_class=AutoTokenizer.from_pretrained(policy.name_or_path),
        model=policy,
        ref_model=None,
        reward_model=TrueReward(),
        value_model=AutoModelForSequenceClassification.from_pretrained(policy.name_or_path, num_labels=1),
        train_dataset=Dataset.from_dict({"input_ids": [[PROMPT]] * args.total_episodes}),
    )


def grpo(policy: PreTrainedModel, beta: float, rounds: int, settings: dict) -> Trainer:
    """GRPO with beta as the coefficient of the KL in its loss."""
    args = GRPOConfig(
        **settings,
        max_steps=rounds * EPOCHS * MINI_BATCHES,
        steps_per_generation=MINI_BATCHES,
        num_iterations=EPOCHS,
        num_generations=GROUP,
        max_completion_length=1,
        beta=beta,
        scale_rewards="none",  # TRL's default divides rewards by the group's sd: that is another beta
        disable_dropout=True,
    )

    def reward(completion_ids: list[list[int]], **_) -> list[float]:
        return [REWARD[ids[0]] for ids in completion_ids]

    prompts = Dataset.from_dict({"prompt": [TOKENS[PROMPT]] * (rounds * BATCH // GROUP)})
    return GRPOTrainer(policy, reward, args, prompts)


def dpo(policy: PreTrainedModel, beta: float, rounds: int, settings: dict) -> Trainer:
    """DPO on pairs of the reference's answers, preferred with Bradley and Terry's probability."""
    rng = np.random.default_rng(settings["seed"])
    pairs = rng.choice(len(TOKENS), (rounds * BATCH // 2, 2), p=REFERENCE / REFERENCE.sum())
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    first, second = REWARD[pairs].T
    lost = rng.random(len(pairs)) > 1 / (1 + np.exp(second - first))
    pairs[lost] = pairs[lost, ::-1]
    rows = [{"prompt": TOKENS[PROMPT], "chosen": f" {TOKENS[a]}", "rejected": f" {TOKENS[b]}"} for a, b in pairs]
    # max_length cuts off the eos that TRL appends: an answer is one token
    args = DPOConfig(**settings, num_train_epochs=EPOCHS, beta=beta, max_length=2)
    return DPOTrainer(policy, args=args, train_dataset=Dataset.from_list(rows))


CORRECTED, PLAIN = "corrected PPO", "TRL's own PPO"
METHODS = {CORRECTED: partial(ppo, CorrectedPPOTrainer), PLAIN: partial(ppo, PPOTrainer), "GRPO": grpo, "DPO": dpo}


@dataclass
class Run:
    """One training: the policy at each share of it, shape (points, tokens), and the optimizer's steps."""

    method: str
    beta: float
    seed: int
    shares: list[float]
    policies: np.ndarray
    steps: int

    def distance(self, share: float | np.ndarray = 1.0) -> float | np.ndarray:
        """Total variation from the optimum after a share of the training."""
        return np.interp(share, self.shares, total_variation(self.policies, optimum(self.beta)))


class Recorder(transformers.TrainerCallback):
    """Records a policy's answers before training and after each step."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy, self.shares, self.policies = policy, [0.0], [distribution(policy)]

    def on_step_end(self, args, state, control, **_) -> None:
        self.shares.append(state.global_step / state.max_steps)
        self.policies.append(distribution(self.policy))


def train(method: str, beta: float, seed: int, rounds: int = ROUNDS, learning_rate: float = 3e-3) -> Run:
    """Train the reference with one of `METHODS` for `rounds` batches of samples."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write_reference(folder, seed)
        transformers.set_seed(seed)
        policy = transformers.AutoModelForCausalLM.from_pretrained(folder)
        settings = SETTINGS | {"output_dir": folder, "seed": seed, "learning_rate": learning_rate}
        trainer = METHODS[method](policy, beta, rounds, settings)
        recorder = Recorder(policy)
        trainer.add_callback(recorder)
        gc.freeze()  # PPO collects garbage twice a round; what the imports made would take most of its time
        trainer.train()
    steps = max(int(state["step"]) for state in trainer.optimizer.state.values())
    return Run(method, beta, seed, recorder.shares, np.array(recorder.policies), steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
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
    for beta in BETAS:
        for method in METHODS:
            for seed in args.seeds:
                run = train(method, beta, seed, learning_rate=args.learning_rate)
                runs.append(run)
                seconds = time.perf_counter() - start
                print(f"{seconds:4.0f} s: beta {beta}, {method}, seed {seed}: TV {run.distance():.3f}", flush=True)
    plot(runs, args.output / "correctness.svg")
    page = args.output / "correctness.md"
    page.write_text(describe(runs, args.learning_rate, seconds))
    print(f"The result is in {page}")


def describe(runs: list[Run], learning_rate: float, seconds: float) -> str:
    """The page on some runs of all methods, in Markdown; what it claims depends on them."""
    seeds = " ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    return f"""# Correctness: the trainers against a known optimum

A policy answers one fixed prompt with one token, and each token has a fixed reward. What PPO, GRPO and DPO maximise,
E[reward] - beta KL(policy || reference), equals a constant minus beta KL(policy || optimum) with

    optimum(token) = reference(token) exp(reward(token) / beta) / normaliser

and so has this one solution. How far a policy ends from it, in total variation (TV), is computed exactly from its
probabilities of the {len(TOKENS)} tokens. The optimum counts as reached up to a TV of {TARGET}.

## What it shows

{claims(runs)}

![The tokens' probabilities, and the distance from the optimum during training](correctness.svg)

| beta | policy | TV, mean | TV, largest | KL from the reference (nats) | E[reward] | E[reward] - beta KL |
|---|---|---|---|---|---|---|
{table(runs)}

Mean and largest TV from the optimum of the same beta are over the seeds {seeds}; the other columns are means.

## How it was made

    python benchmarks/correctness.py --seeds {seeds} --learning_rate {learning_rate}

- The policy is a Llama of one layer and width 16, one for each seed, with a head that makes it the reference.
- PPO and GRPO: {ROUNDS} rounds of {BATCH} samples, {EPOCHS} passes of {MINI_BATCHES} steps over each, ratios clipped
  at {PPOConfig.cliprange} and {GRPOConfig.epsilon}; GRPO in groups of {GROUP}, rewards not divided by their sd.
- DPO: {EPOCHS} passes over the pairs of as many samples of the reference, less those of equal tokens, in batches of
  {BATCH // MINI_BATCHES}; the preferred one is drawn with Bradley and Terry's probability.
- All: AdamW, learning rate {learning_rate}, falling linearly to zero; gradients clipped at a norm of
  {SETTINGS["max_grad_norm"]}, which TRL's PPOTrainer leaves out.
- {date.today()}, {seconds:.0f} s on one thread of {machine()["cpu"]};
  {", ".join(f"{name} {version}" for name, version in versions().items())}.
"""


def claims(runs: list[Run]) -> str:
    """What the runs show, as Markdown."""
    lines, missed = [], {}
    methods = {method: [run for run in runs if run.method == method] for method in METHODS}
    for method, some in methods.items():
        missed[method] = [f"beta {run.beta}, seed {run.seed}" for run in some if run.distance() > TARGET]
        verdict = f"reaches the optimum in all of {len(some)} runs"
        if missed[method]:
            verdict = f"misses the optimum in {len(missed[method])} of {len(some)} runs ({'; '.join(missed[method])})"
        lines.append(f"- **{method}** {verdict}; largest TV {max(run.distance() for run in some):.3f}.")

    ours, theirs = (np.mean([run.steps for run in methods[name]]) for name in (CORRECTED, PLAIN))
    lines.append(f"""
By their settings both PPO trainers take {STEPS} optimizer steps: the corrected one took {ours:.0f},
TRL's {theirs:.0f}.""")
    for share in SHARES:
        means = {name: np.mean([run.distance(share) for run in methods[name]]) for name in (CORRECTED, PLAIN)}
        near, far = sorted(means, key=means.get)
        lines.append(
            f"After {share:.0%} of the samples {near} is nearer: mean TV {means[near]:.3f} against {means[far]:.3f}."
        )

    limits = {beta: optimum(beta * GROUP / (GROUP - 1)) for beta in BETAS}
    off = " and ".join(f"{total_variation(limit, optimum(beta)):.3f} (beta {beta})" for beta, limit in limits.items())
    rest = np.mean([total_variation(run.policies[-1], limits[run.beta]) for run in methods["GRPO"]])
    lines.append(f"""
GRPO's limit is a little off: the mean that it subtracts from a reward contains this reward itself. In groups of G that
shrinks the gradient of the reward, but not that of the KL, by 1 - 1/G, so it seeks the optimum of beta G / (G - 1).
With G = {GROUP} this lies {off} from the optimum of beta; GRPO ends {rest:.3f} from it on average.
DPO's labels are random: its limit is the optimum only with infinitely many pairs.

One-token answers cannot show how credit is shared among tokens, and no reward model errs here.""")
    return "\n".join(lines)


def table(runs: list[Run]) -> str:
    """A Markdown row for the reference, the optimum and each method, by beta."""
    lines = []
    for beta in BETAS:
        policies = {"reference": [REFERENCE], "optimum": [optimum(beta)]}
        policies |= {name: [r.policies[-1] for r in runs if (r.method, r.beta) == (name, beta)] for name in METHODS}
        for name, some in policies.items():
            distances = total_variation(np.array(some), optimum(beta))
            kl = np.mean([policy @ np.log(policy / REFERENCE) for policy in some])
            reward = np.mean([policy @ REWARD for policy in some])
            numbers = [distances.mean(), distances.max(), kl, reward, reward - beta * kl]
            lines.append(f"| {beta} | {name} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    return "\n".join(lines)


def plot(runs: list[Run], path: Path) -> None:
    """Draw the final policies beside reference and optimum, and their distance during training; bars span the seeds."""
    figure = Figure(figsize=(5 * len(BETAS), 6), layout="constrained")
    x, shares = np.arange(len(TOKENS)), np.linspace(0, 1, ROUNDS + 1)
    axes = figure.subplots(2, len(BETAS), sharey="row")
    for beta, (answers, distances) in zip(BETAS, axes.T, strict=True):
        answers.bar(x, REFERENCE, 0.9, color="0.85", label="reference")
        answers.hlines(optimum(beta), x - 0.45, x + 0.45, color="black", label="optimum")
        for i, method in enumerate(METHODS):
            some = [run for run in runs if (run.method, run.beta) == (method, beta)]
            low, mean, high = _spread([run.policies[-1] for run in some])
            answers.errorbar(x + 0.2 * i - 0.3, mean, (mean - low, high - mean), fmt="o", markersize=3, label=method)
            low, mean, high = _spread([run.distance(shares) for run in some])
            distances.plot(shares, mean)
            distances.fill_between(shares, low, high, alpha=0.2)
        distances.axhline(TARGET, color="grey", linestyle="--")
        answers.set(title=f"beta = {beta}", ylabel="probability")
        answers.set_xticks(x, TOKENS, fontsize="small")
        distances.set(xlabel="share of the training", ylabel="TV from the optimum", yscale="log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 + len(METHODS))
    with matplotlib.rc_context(SVG):
        figure.savefig(path, metadata={"Date": None})


def _spread(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest, mean and largest over the runs."""
    return np.min(values, 0), np.mean(values, 0), np.max(values, 0)


if __name__ == "__main__":
    main()
