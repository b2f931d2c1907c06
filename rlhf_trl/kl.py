"""One strength of the KL for PPO, GRPO and DPO: all three maximise E[r] - b KL(policy || reference).

The reward r is counted in standard deviations of the reward model's scores (`rewards.StandardisedHead`). What b is in
the words of each trainer:

    PPO    kl_coef = b
    GRPO   beta = b (G - 1) / G, as the mean of a group of G replies, which is subtracted, holds the reply's own reward
    DPO    beta = b s, with s the standard deviation of the scores, which DPO's implicit reward is not divided by

`docs/correctness.md` tests it. For replies of several tokens GRPO's gradient leaves out what a token does to the KL of
later ones, so that its optimum is another one there.
"""

from dataclasses import dataclass, field
from typing import Any

from rlhf_trl.errors import UserError

COEFFICIENTS = {"PPOConfig": "kl_coef", "GRPOConfig": "beta", "DPOConfig": "beta"}
# What says how strong the KL is; one of them on the command line takes the place of another in the config file
OPTIONS = {"kl_strength", *COEFFICIENTS.values()}
# With other values of these, a trainer maximises something else
NEEDED = {
    "kl_coef": {"kl_estimator": "k1", "gamma": 1.0},
    "num_generations": {
        "scale_rewards": "none",
        "use_bias_correction_kl": True,
        "importance_sampling_level": "token",
        "reward_weights": None,
    },
    "beta": {
        "loss_type": ["sigmoid"],
        "f_divergence_type": "reverse_kl",
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "use_weighting": False,
    },
}


@dataclass
class KLConfig:
    """How strongly the policy is held near the model it starts from."""

    kl_strength: float | None = field(
        default=None,
        metadata={
            "help": "b, where E[r] - b KL is maximised, r in standard deviations of the reward model's scores: the "
            "same for PPO, GRPO and DPO. TRL's own coefficient (kl_coef, beta) may be given in its place."
        },
    )


@dataclass
class DPOKLConfig(KLConfig):
    """DPO's `beta` from `kl_strength` and the scale of the reward model, which it needs for nothing else."""

    reward_model_path: str | None = field(
        default=None,
        metadata={"help": "Run folder of the reward recipe, whose scale makes beta of kl_strength; unused with beta."},
    )

    def __post_init__(self) -> None:
        if self.kl_strength is None:
            self.reward_model_path = None


def set_coefficient(config: KLConfig, args: Any, default: float) -> None:
    """Set TRL's coefficient from `kl_strength`, where that is given; DPO's recipe does it, by `rewards.reward_std`.

    Args:
        args: TRL's config, its coefficient None if it was not given.
        default: TRL's own, for when neither is given.

    Raises:
        UserError: both are given, or a setting beside `kl_strength` with which it would mean something else.
    """
    name = COEFFICIENTS[type(args).__name__]
    given = getattr(args, name)
    if config.kl_strength is None:
        setattr(args, name, default if given is None else given)
        return
    if given is not None:
        raise UserError(f"kl_strength and {name} both say how strong the KL is; leave one of them out")
    if config.kl_strength < 0:
        raise UserError("kl_strength must be at least 0")
    for option, value in _needed(vars(args)).items():
        if getattr(args, option) != value:
            raise UserError(
                f"kl_strength needs {option}: {value}, not {getattr(args, option)}; set that, or {name} in its place"
            )
    if not isinstance(config, DPOKLConfig):
        setattr(args, name, config.kl_strength * _unit(vars(args), None))
    elif config.reward_model_path is None:
        raise UserError("kl_strength needs the scale of a reward model; set reward_model_path, or beta in its place")


def strength(settings: dict[str, Any], reward_std: float | None) -> float | None:
    """b of a run, from the settings in its `config.yaml`; None where it has none, or nothing that can be compared."""
    unit = _unit(settings, reward_std)
    coefficient = settings.get("kl_coef", settings.get("beta"))
    if coefficient is None or unit is None or any(settings.get(name) != v for name, v in _needed(settings).items()):
        return None
    return coefficient / unit


def _needed(settings: dict[str, Any]) -> dict[str, Any]:
    return next((needed for name, needed in NEEDED.items() if name in settings), {})


def _unit(settings: dict[str, Any], reward_std: float | None) -> float | None:
    """The coefficient of b = 1."""
    if "kl_coef" in settings:
        return 1.0
    if "num_generations" in settings:
        return (settings["num_generations"] - 1) / settings["num_generations"]
    return reward_std
