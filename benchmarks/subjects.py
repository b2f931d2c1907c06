"""What `benchmarks/speed.py` compares: the sections of its page, with the columns of their tables."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sides import (
    DELAY,
    NO_CHECKPOINTING,
    TRL,
    Sides,
    implicit_margins,
    judging,
    padding,
    profiles,
    reward_margins,
    sampling,
    scoring,
    starting,
    trainings,
)
from worlds import World


class Subject(NamedTuple):
    """A section of the page. Its table has a row for each side in each world, ours first."""

    title: str
    note: str
    sides: Callable[[World], Sides]
    columns: dict[str, tuple[str, str]]  # title: figure of the record, its format
    ratios: dict[str, str]  # title: figure
    margins: Callable[[World, Path], np.ndarray] | None = None  # of the held-out pairs, by a trained model
    everywhere: bool = True  # or in the first world only, as no model takes part
    turns: int | None = None  # of each side, where they are not compared; else as many as are asked for


TRAINING = {"whole command (s)": ("seconds", ".1f"), "training (s)": ("training", ".1f")}
TOKENS = {"useful tokens a second": ("speed", ".0f"), "useful share": ("share", ".2f")}
EPISODES = {"episodes a second": ("speed", ".2f"), "last reward": ("reward", ".2f")}
COST = {"optimizer steps": ("steps", ".0f"), "peak memory (MB)": ("memory", ".0f")}
LOOP = {"items": ("items", ".0f"), "seconds": ("seconds", ".2f"), "items a second": ("speed", ".1f")}
FASTER = {"speed, ours / this": "speed"}
EXPECTED = {"by arithmetic": "efficiency"}
LARGER = {"memory, ours / this": "memory"}

SUBJECTS = {
    "reward": Subject(
        "Reward model",
        "`recipes/reward.py` and the script behind `trl reward`, on the same pairs and with the same batches, epochs, "
        "learning rate, LoRA, precision and seed. All else is each side's default; as TRL's has gradient checkpointing "
        "on, a third side has it off, in one turn. Useful tokens are those that are not padding. By arithmetic, less "
        "padding and no checkpointing gain so much; batches that fit the caches of a CPU can gain more. Our whole "
        "command includes the scale of the scores, on up to 256 more replies. Accuracies are on held-out pairs, with "
        "Wilson's 95% interval.",
        trainings("reward", TRL, NO_CHECKPOINTING),
        TRAINING | TOKENS | COST,
        FASTER | EXPECTED | LARGER,
        reward_margins,
    ),
    "dpo": Subject(
        "DPO",
        "As above, with `recipes/dpo.py` and the script behind `trl dpo`. Our training time includes that for the "
        "log-probabilities under the reference. The accuracy is that of DPO's implicit reward.",
        trainings("dpo", TRL, NO_CHECKPOINTING),
        TRAINING | TOKENS | COST,
        FASTER | EXPECTED | LARGER,
        implicit_margins,
    ),
    "profile": Subject(
        "What reward and DPO training spend their time on",
        "Ours, in one turn with torch's profiler: shares of the time in the trainer's loop. What is left is Python's, "
        "and the profiler's own, which is large where operators are as small as the demo's.",
        profiles,
        {
            "matrix products": ("matmul", ".2f"),
            "attention": ("attention", ".2f"),
            "other operators": ("other", ".2f"),
        },
        {},
        turns=1,
    ),
    "padding": Subject(
        "Padding",
        "Of all pairs that a reward model or DPO is trained on, in batches of 8, the share of useful tokens.",
        padding,
        {"pairs": ("items", ".0f"), "useful share": ("share", ".3f")},
        {},
        turns=1,
    ),
    "sft": Subject("SFT", "Ours alone, in one turn.", trainings("sft"), TRAINING | TOKENS | COST, {}, turns=1),
    "ppo": Subject(
        "PPO",
        "`recipes/ppo.py` and TRL's `PPOTrainer` as its example uses it (`benchmarks/plain.py`), with the same config, "
        "prompts and models. `num_mini_batches` adds no optimizer steps to TRL's. Two things are spared. TRL collects "
        "garbage twice an update, which takes as long however small the model is, so that it counts most on the demo; "
        "ours leaves the libraries' objects out of it. And with LoRA TRL trains the value model in full: a micro-batch "
        "costs it the arithmetic of 2 forward passes of the policy and 3 of the value model, ours 2 and 2. So on a "
        "larger model the limit is 1.25, and less with the sampling, which is the same. In full fine-tuning, as "
        "in the demo, both hold the same models. Rewards are means over the last quarter of the updates, in standard "
        "deviations of the reward model's scores.",
        trainings("ppo", TRL),
        TRAINING | EPISODES | COST,
        FASTER | LARGER,
    ),
    "grpo": Subject(
        "GRPO",
        "As above, with `recipes/grpo.py` and TRL's `GRPOTrainer`, which is given the path of the reward model. It "
        "scores replies without their eos, and no penalty is subtracted for a missing one: its reward is another one.",
        trainings("grpo", TRL),
        TRAINING | EPISODES | COST,
        FASTER | LARGER,
    ),
    "sampling": Subject(
        "Sampling",
        "Replies to held-out prompts of up to 64 tokens, as `make samples` draws them. To read a prompt takes as long "
        "in a batch as alone where, as on a CPU, arithmetic is the limit; what a batch saves is the weights, read anew "
        "for every token of every reply. So the ratio falls with longer prompts.",
        sampling,
        LOOP,
        FASTER,
    ),
    "scoring": Subject(
        "Scoring",
        "Both replies of held-out pairs, by the reward model. A reply is read in one pass, in which each weight is "
        "used for hundreds of tokens. So where arithmetic is the limit, as for a larger model on a CPU, a batch has "
        "nothing to save; it must only not pay for padding.",
        scoring,
        LOOP,
        FASTER,
    ),
    "judge": Subject(
        "Judge",
        f"Verdicts of a server on this machine that takes {DELAY} s for each, as `make judge` asks for them.",
        judging,
        LOOP,
        FASTER,
        everywhere=False,
    ),
    "start": Subject(
        "Start", "Medians of 5 starts.", starting, {"seconds": ("seconds", ".2f")}, {}, everywhere=False, turns=5
    ),
}
