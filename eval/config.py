"""The settings of the evaluation commands."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from rlhf_trl import demo
from rlhf_trl.config import RECIPES
from rlhf_trl.errors import UserError
from rlhf_trl.provenance import policy_folders


class GoldRule(NamedTuple):
    """What is known of a made-up world: the true reward of a dialogue and a reply, and the cue without value."""

    reward: Callable[[str, str], float]
    cue: str  # text that the pairs' annotator liked for no reason


OPENAI_URL = "https://api.openai.com/v1"
ADDRESS = re.compile(r"https?://(\[[\da-fA-F:.]+\]|[^/?#@:\[\]\s]+)(:\d+)?(/\S*)?")  # without user and password

GOLD_RULES = {"demo": GoldRule(demo.gold_reward, demo.CLOSING.strip())}
PRICES = ("usd_per_million_input", "usd_per_million_output")
BUDGETS = ("budget_requests", "budget_tokens", "budget_usd")
# The least values of options
LEAST = {"prompts": 2}
LEAST |= dict.fromkeys(("replies", "best_of", "max_new_tokens", "batch_size", "judge_prompts", "judge_replies"), 1)
LEAST |= dict.fromkeys(("judge_max_tokens", "concurrency"), 1)
LEAST |= dict.fromkeys(("judge_temperature", "retries", *BUDGETS, *PRICES, "curve_prompts", "error_samples"), 0)


@dataclass(kw_only=True)
class EvalConfig:
    """Where results are and go; `reads` are folders of results there that a step reads."""

    reads: ClassVar[tuple[str, ...]] = ()
    output_dir: str = field(metadata={"help": "Profile folder; holds the run folders and gets the results."})

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name, None)
            if value is not None and not value >= least:
                raise UserError(f"{name} must be at least {least}")


@dataclass(kw_only=True)
class SeedConfig(EvalConfig):
    """What chance depends on."""

    seed: int = field(default=0, metadata={"help": "Seed of all that is drawn: prompts, replies, resamples."})


@dataclass(kw_only=True)
class ModelsConfig(SeedConfig):
    """How models are loaded and read."""

    batch_size: int = field(default=16, metadata={"help": "Sequences a batch when sampling and scoring."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Weights of the models."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})


@dataclass(kw_only=True)
class PoliciesConfig(EvalConfig):
    """Which policies are compared."""

    policies: list[str] = field(
        default_factory=lambda: [name for name, recipe in RECIPES.items() if recipe.compared],
        metadata={
            "help": "What to compare: run folders in output_dir, or NAME=FOLDER. The first is the reference for KL and "
            "differences. By default those that the profile has a section for."
        },
    )

    @property
    def folders(self) -> dict[str, str]:
        """Where each policy's model is, by name; the first is the reference."""
        return policy_folders(self.policies, Path(self.output_dir))


@dataclass(kw_only=True)
class RewardConfig(EvalConfig):
    """Which reward model scores."""

    reward_model: str | None = field(
        default=None, metadata={"help": "Reward model folder. By default reward in output_dir."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reward_model = self.reward_model or str(Path(self.output_dir) / "reward")


@dataclass(kw_only=True)
class ProbesConfig(EvalConfig):
    """Which failure modes are looked for."""

    probes: str | None = field(
        default=None, metadata={"help": "YAML of prompts that probe for failure modes. None by default."}
    )


@dataclass(kw_only=True)
class DataAnalysisConfig(EvalConfig):
    """Whose tokens are counted."""

    tokenizer: str = field(metadata={"help": "Model folder or hub name whose tokenizer counts."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})


@dataclass(kw_only=True)
class CardConfig(RewardConfig, ModelsConfig):
    """What the card of a reward model shows."""

    error_samples: int = field(
        default=50, metadata={"help": "Wrong pairs of the reward model to read in its error analysis."}
    )
    pad_token: str | None = field(
        default=None, metadata={"help": "Pad token, where the reward model's tokenizer has none besides eos."}
    )


@dataclass(kw_only=True)
class SamplesConfig(PoliciesConfig, ProbesConfig, ModelsConfig):
    """What is sampled: on how many prompts, and how."""

    base: str | None = field(
        default=None,
        metadata={
            "help": "The untouched base model, shown beside. By default what the profile's reference was made of."
        },
    )
    prompts: int = field(default=200, metadata={"help": "Evaluation prompts; the same for every policy."})
    replies: int = field(default=1, metadata={"help": "Replies of each policy to a prompt at temperature 1."})
    colder: list[float] | None = field(
        default_factory=lambda: [0.7, 0.3],
        metadata={
            "help": "Temperatures at which the reference alone is sampled too, since that costs no training; null for "
            "none."
        },
    )
    curve_prompts: int = field(
        default=100,
        metadata={"help": "Prompts for the over-optimisation curves (checkpoints, best-of-n); 0 leaves them out."},
    )
    best_of: int = field(default=64, metadata={"help": "Replies a prompt for the best-of-n curve."})
    max_new_tokens: int = field(default=128, metadata={"help": "Longest completion."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.colder = list(dict.fromkeys(self.colder or ()))
        if not all(0 < temperature < 1 for temperature in self.colder):
            raise UserError("each temperature of colder must be above 0 and below 1; the others are sampled anyway")


@dataclass(kw_only=True)
class ScoreConfig(PoliciesConfig, ProbesConfig, RewardConfig, ModelsConfig):
    """By what replies are scored."""

    reads = ("samples",)
    gold_rule: str | None = field(default=None, metadata={"help": "A true rule to score by: demo, or none."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gold_rule is not None and self.gold_rule not in GOLD_RULES:
            raise UserError(f"unknown gold_rule {self.gold_rule}; choose one of {', '.join(GOLD_RULES)}, or none")


@dataclass(kw_only=True)
class JudgeConfig(PoliciesConfig):
    """Who compares replies pair by pair, how many, and at what cost."""

    judge: str = field(
        default="openai",
        metadata={"help": "openai (any OpenAI-compatible server), gold (the true rule of the profile) or none."},
    )
    judge_model: str = field(default="gpt-4.1", metadata={"help": "Model that the server is asked for."})
    base_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible server. By default OPENAI_BASE_URL, else OpenAI's own."}
    )
    judge_pairs: list[str] | None = field(
        default=None, metadata={"help": "Pairs to judge, as ppo:sft. All pairs of policies by default."}
    )
    judge_prompts: int = field(default=100, metadata={"help": "Prompts a pair; each is judged in both orders."})
    judge_replies: int = field(
        default=1, metadata={"help": "Replies to each prompt that are judged, at most `replies`."}
    )
    judge_greedy: bool = field(
        default=False,
        metadata={"help": "Also judge the greedy replies, to see whether the order changes with the temperature."},
    )
    judge_checkpoints: bool = field(
        default=False,
        metadata={"help": "Also judge every checkpoint against the reference, for the over-optimisation curves."},
    )
    judge_template: str | None = field(
        default=None, metadata={"help": "jinja2 file that makes the request from dialogue, first and second."}
    )
    judge_temperature: float | None = field(default=0.0, metadata={"help": "Left out of the request if null."})
    judge_max_tokens: int | None = field(default=512, metadata={"help": "Left out of the request if null."})
    concurrency: int = field(default=32, metadata={"help": "Requests under way at a time."})
    retries: int = field(default=5, metadata={"help": "Retries of a request, with back-off or as Retry-After says."})
    timeout: float = field(default=60.0, metadata={"help": "Seconds to wait for an answer."})
    budget_requests: int | None = field(default=None, metadata={"help": "Stop after so many HTTP requests."})
    budget_tokens: int | None = field(default=None, metadata={"help": "Stop after so many tokens, in and out."})
    budget_usd: float | None = field(default=None, metadata={"help": "Stop after so much money; needs the prices."})
    usd_per_million_input: float | None = field(default=None, metadata={"help": "Price of a million tokens read."})
    usd_per_million_output: float | None = field(default=None, metadata={"help": "Price of a million tokens written."})
    dry_run: bool = field(default=False, metadata={"help": "Only print how many requests and tokens it would take."})

    @property
    def reads(self) -> tuple[str]:
        """The results that replies are taken from: those of the true rule are in the scores."""
        return ("scores",) if self.judge == "gold" else ("samples",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge not in ("openai", "gold", "none"):
            raise UserError(f"unknown judge {self.judge}; choose openai, gold or none")
        if not self.timeout > 0:
            raise UserError("timeout must be above 0")
        missing = [name for name in PRICES if getattr(self, name) is None]
        if missing and (len(missing) == 1 or self.budget_usd is not None):
            raise UserError(f"budget_usd and the estimate need both prices; set {' and '.join(missing)}")

        if self.judge == "openai":
            named = "base_url" if self.base_url else "OPENAI_BASE_URL"
            self.base_url = (self.base_url or os.environ.get(named, "")).strip().rstrip("/") or OPENAI_URL
            if not ADDRESS.fullmatch(self.base_url):  # not shown, as it may hold a password
                raise UserError(
                    f"{named} is no address of a server; it begins with http:// or https:// and holds no user or "
                    "password, as the key is read from OPENAI_API_KEY"
                )


@dataclass(kw_only=True)
class ReportConfig(PoliciesConfig, RewardConfig, SeedConfig):
    """What is said of the results."""

    reads = ("data", "reward-model", "scores", "judge")
    smallest_difference: float = field(
        default=0.05,
        metadata={
            "help": "The smallest difference that matters, in units of what is compared (win rate, gold reward, or sd "
            "of the proxy reward): two policies shown to be within it are called equivalent."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smallest_difference <= 0:
            raise UserError("smallest_difference must be above 0")


@dataclass(kw_only=True)
class CompareConfig(SamplesConfig, ScoreConfig, JudgeConfig, ReportConfig):
    """All that samples, score, judge and report are told."""


@dataclass
class ChatConfig:
    """Whom to talk to, and how it samples."""

    policy: str = field(metadata={"help": "Model folder, adapter or hub name."})
    temperature: float = field(default=1.0, metadata={"help": "What replies are sampled at; 0 for the likeliest ones."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest reply."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Weights of the model. By default as they are saved."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})
    seed: int = field(default=0, metadata={"help": "Seed of the first reply; each later one has the next."})

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError("max_new_tokens must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise UserError("temperature must be at least 0 and finite")
