"""The settings of the recipes: our own dataclasses, and the table of recipes, which names TRL's."""

import json
from dataclasses import dataclass, field
from typing import NamedTuple

from rlhf_trl import kl
from rlhf_trl.errors import UserError

# Shares of the train split by use, disjoint by prompt: DPO trains on the reward pairs, so that all methods see the same
# preferences; policy holds PPO's and GRPO's prompts; gold at least as many pairs as reward, for a second reward model
# to judge by; validation what settings are chosen on and rewards scaled by.
SPLITS = {"sft": 0.25, "reward": 0.25, "policy": 0.13, "gold": 0.27, "validation": 0.10}

ROW = ("prompt", "chosen", "rejected")  # of preference data
COLUMNS = (*ROW, "system")  # that are read; prompt and system may be missing


@dataclass
class DataConfig:
    """Which preference pairs to use, and how much of them."""

    dataset: str = field(
        default="Anthropic/hh-rlhf",
        metadata={
            "help": "Hub name, folder or file: HH-RLHF's dialogues, or TRL's preference formats, as jsonl, json, csv "
            "(these may be gzipped) or parquet."
        },
    )
    data_dir: list[str] | None = field(
        default=None, metadata={"help": "Subsets (folders) to read, e.g. harmless-base. All by default."}
    )
    split: str | None = field(
        default=None, metadata={"help": "The split to train on, e.g. train_prefs, if it is not train."}
    )
    test_split: str | None = field(
        default=None,
        metadata={
            "help": "The split to evaluate on, if it is not test (test_prefs beside train_prefs) or validation. "
            "Without any, a tenth of the prompts is kept for it."
        },
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Other names of columns, as prompt=question chosen=better rejected=worse."},
    )
    max_prompt_tokens: int = field(
        default=512, metadata={"help": "Rows with a longer prompt are dropped; prompts are never cut."}
    )
    max_completion_tokens: int = field(
        default=256, metadata={"help": "Pairs with a longer reply are dropped; replies are never cut."}
    )
    max_rows: int | None = field(
        default=None, metadata={"help": "Use only this many rows (after a seeded shuffle). All by default."}
    )
    splits: dict | str | None = field(
        default=None,
        metadata={
            "help": "Shares of the train split, the same for all steps of a profile; by default "
            + ", ".join(f"{name} {share}" for name, share in SPLITS.items())
            + ". A profile with a true rule needs no gold."
        },
    )

    def __post_init__(self) -> None:
        self.splits = _shares(self.splits)
        named = [entry.partition("=") for entry in self.columns or ()]
        for name, equals, column in named:
            if [other for other, *_ in named].count(name) > 1:
                raise UserError(f"columns: {name} is named twice")
            if name not in COLUMNS or not (equals and column):
                raise UserError(
                    f"columns: {name}{equals}{column} names no column; write {'=NAME, '.join(COLUMNS)}=NAME"
                )
        for name in ("max_prompt_tokens", "max_completion_tokens", "max_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1")


def _shares(given: dict | str | None) -> dict[str, float]:
    """The share of every split, from what a config or a command line says.

    Raises:
        UserError: no shares, or an unknown split, or what does not add up to 1, or no room for what is always needed.
    """
    try:
        given = SPLITS if given is None else json.loads(given) if isinstance(given, str) else given
        shares = {name: float(given.get(name, 0)) for name in SPLITS}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"splits: {given} holds no shares; write {{{', '.join(f'{n}: 0.2' for n in SPLITS)}}}"
        ) from error
    if unknown := set(given) - set(SPLITS):
        raise UserError(f"splits: there is no split {min(unknown)}; they are {', '.join(SPLITS)}")
    if empty := [name for name, share in shares.items() if not (share > 0 or (share == 0 and name == "gold"))]:
        raise UserError(f"splits: {empty[0]} needs a share above 0")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"splits: the shares add up to {sum(shares.values()):g}, not to 1")
    return shares


@dataclass
class TaskConfig:
    """How a step is started."""

    fresh: bool = field(
        default=False,
        metadata={
            "help": "Make it anew, whatever a finished or stopped run was made of, and do not go on from that. Replies "
            "and verdicts that would be the same are kept."
        },
    )


@dataclass
class TrustConfig:
    """What PPO's own config lacks."""

    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})


@dataclass
class RewardModelConfig:
    """The reward that GRPO learns from (PPO's own config has the same fields)."""

    reward_model_path: str = field(metadata={"help": "Run folder of the reward recipe."})
    missing_eos_penalty: float = field(
        default=1.0, metadata={"help": "Subtracted from the score of a completion that did not end."}
    )


class Recipe(NamedTuple):
    """What a recipe is: all that the step graph, `make check`, the evaluation and the tests know of it.

    Models are named policy, reward, value and reference.
    """

    configs: tuple[type | str, ...]  # its options; TRL's classes are named, not imported: that takes ten seconds
    splits: tuple[str, ...]  # that it reads, first of all what it trains on
    trains: tuple[str, ...] = ("policy",)  # models that an optimizer changes
    holds: tuple[str, ...] = ()  # other models that it holds in full fine-tuning
    holds_with_lora: tuple[str, ...] = ()  # where the policy without its adapter is the reference
    samples: bool = False  # whether it learns from replies that it samples
    compared: bool = True  # whether it makes a policy that the evaluation compares


MODEL = "trl.ModelConfig"
RECIPES = {
    "sft": Recipe((DataConfig, MODEL, "trl.SFTConfig"), ("sft",)),
    "reward": Recipe(
        (DataConfig, MODEL, "trl.RewardConfig"), ("reward", "validation"), trains=("reward",), compared=False
    ),
    "ppo": Recipe(
        (DataConfig, MODEL, kl.KLConfig, TrustConfig, "trl.experimental.ppo.PPOConfig"),
        ("policy",),
        trains=("policy", "value"),
        holds=("reference", "reward"),
        holds_with_lora=("reward",),  # on which the value model is an adapter
        samples=True,
    ),
    "grpo": Recipe(
        (DataConfig, MODEL, RewardModelConfig, kl.KLConfig, "trl.GRPOConfig"),
        ("policy",),
        holds=("reference", "reward"),
        holds_with_lora=("reward",),
        samples=True,
    ),
    # Its reference is the policy before training, unless precompute_ref_log_probs is off
    "dpo": Recipe((DataConfig, MODEL, kl.DPOKLConfig, "trl.DPOConfig"), ("reward",)),
}
