"""The settings that all evaluation commands share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rlhf_trl import demo
from rlhf_trl.errors import UserError

GOLD_RULES: dict[str, Callable[[str, str], float]] = {"demo": demo.gold_reward}


@dataclass
class EvalConfig:
    """What to evaluate, on how many prompts, and how to sample."""

    output_dir: str = field(metadata={"help": "Profile folder; holds the run folders and gets eval/ and report/."})
    policies: list[str] = field(
        default_factory=lambda: ["sft", "ppo", "grpo", "dpo"],
        metadata={"help": "Run folders to compare. The first is the reference for KL and differences."},
    )
    prompts: int = field(default=200, metadata={"help": "Evaluation prompts; the same for every policy."})
    max_new_tokens: int = field(default=128, metadata={"help": "Longest completion."})
    batch_size: int = field(default=16, metadata={"help": "Sequences a batch when sampling and scoring."})
    dtype: str = field(default="float32", metadata={"help": "Weights of the models: float32 or bfloat16."})
    seed: int = field(default=0, metadata={"help": "Seed of prompt choice, sampling and bootstrap."})
    gold_rule: str | None = field(default=None, metadata={"help": "A true rule to score by: demo, or none."})

    def __post_init__(self) -> None:
        for name in ("prompts", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1")
        if self.gold_rule is not None and self.gold_rule not in GOLD_RULES:
            raise UserError(f"unknown gold_rule {self.gold_rule}; choose one of {', '.join(GOLD_RULES)}, or none")
