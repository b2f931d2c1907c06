"""What the compared runs have in common, as far as their manifests show it, and what sets them apart."""

import itertools
from pathlib import Path
from typing import Any

import yaml

from eval.pages.sentences import listed
from rlhf_trl import kl

ONLINE = {"total_episodes", "num_generations"}  # settings of those that sample while they train: PPO, GRPO
# Settings that the parents' and data's hashes stand for, or that say where a run is
OF_A_RUN = {"seed", "data_seed", "output_dir", "dataset", "model_name_or_path", "reward_model_path"}


def read_settings(folders: dict[str, str]) -> dict[str, dict]:
    """The `config.yaml` of each run folder that has one."""
    paths = {name: Path(folder) / "config.yaml" for name, folder in folders.items()}
    return {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def shared(names: list[str], runs: dict[str, dict], settings: dict[str, dict], reward_model: str | None) -> list[dict]:
    """What matched conditions ask for, each with whether it `holds`; nothing where a manifest or settings are missing.

    Args:
        names: of the policies, the reference first.
        runs: manifests, of the policies' runs and of "reward".
        reward_model: SHA-256 of the one that scored the replies.
    """
    if not (runs.keys() >= {*names, "reward"} and settings.keys() >= set(names)):
        return []
    compared = trained(names, runs)
    scaled = [name for name in compared if "reward_model" in runs[name]["made_of"]]
    online = [name for name in compared if settings[name].keys() & ONLINE]
    offline = [name for name in compared if name not in online]
    data = {name: run["data"]["sha256"] for name, run in runs.items()}
    starts = {runs[name]["made_of"]["model"]["sha256"] for name in compared}
    rewards = {runs[name]["made_of"]["reward_model"]["sha256"] for name in scaled}
    start = (f"{listed(compared)} started from {names[0]}", starts == {runs[names[0]]["sha256"]})
    if compared == names:
        start = (f"{listed(compared)} started from one model", True)
    checks = [
        start,
        (f"the reward model that scores the replies is the one behind {listed(scaled)}", rewards == {reward_model})
        if scaled
        else None,
        (f"{listed(online)} learned on the same prompts", len({data[name] for name in online}) == 1)
        if len(online) > 1
        else None,
        (
            f"{listed(offline)} learned from the pairs of the reward model",
            {data[name] for name in offline} == {data["reward"]},
        )
        if offline
        else None,
        ("all have one seed", len({runs[name]["seed"] for name in names}) == 1),
    ]
    return [{"what": what, "holds": holds} for what, holds in filter(None, checks)]


def trained(names: list[str], runs: dict[str, dict]) -> list[str]:
    """The policies whose training is compared: all but the reference (the first), unless it started where they did."""
    starts = {runs[name]["made_of"]["model"]["sha256"] if name in runs else None for name in names}
    return names if len(starts) == 1 and None not in starts else names[1:]


def same_method(settings: dict[str, dict], runs: dict[str, dict]) -> list[tuple[str, str]]:
    """Pairs of runs of one method, settings, data and models, with another seed: chance is all that sets them apart."""
    made_of = {
        name: [
            {key: value for key, value in own.items() if key not in OF_A_RUN},
            {role: parent["sha256"] for role, parent in runs[name]["made_of"].items()},
            runs[name]["data"]["rows"],
        ]
        for name, own in settings.items()
        if name in runs
    }
    return [
        (a, b)
        for a, b in itertools.combinations(made_of, 2)
        if made_of[a] == made_of[b] and runs[a]["seed"] != runs[b]["seed"]
    ]


def differences(
    settings: dict[str, dict], runs: dict[str, dict], policies: dict[str, dict], reward_std: float | None
) -> dict[str, dict[str, Any]]:
    """What sets the methods' runs apart: a row for each quantity, with a value for each run; None where it has none."""
    columns = {
        name: _column(values, runs[name], policies[name], reward_std)
        for name, values in settings.items()
        if name in runs and name in policies
    }
    rows = next(iter(columns.values()), {})
    return {row: {name: column[row] for name, column in columns.items()} for row in rows}


def _column(settings: dict, run: dict, policy: dict, reward_std: float | None) -> dict[str, Any]:
    train = run["train"]
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * settings["processes"]
    strength = kl.strength(settings, reward_std)
    if "total_episodes" in settings:
        examples, epochs = settings["total_episodes"], settings["num_ppo_epochs"]
        kind, batch = "replies sampled", batch // settings["num_mini_batches"]
    elif "num_generations" in settings:
        epochs = settings["num_iterations"]
        kind, examples = "replies sampled", train["optimizer_steps"] * batch // epochs
    else:
        kind, rows = "pairs read", run["data"]["rows"]
        examples = settings["max_steps"] * batch if settings["max_steps"] > 0 else rows * settings["num_train_epochs"]
        epochs = examples / rows
    return {
        "examples": f"{examples:g} {kind}",
        "optimizer steps": train["optimizer_steps"],
        "examples a step": batch,
        "passes over each example": f"{epochs:.2g}",
        "learning rate, highest": f"{settings['learning_rate']:.1e}",
        "learning rates, sum over steps": f"{train['learning_rate_sum']:.2g}",
        "schedule": settings["lr_scheduler_type"],
        "strength of the KL (b)": "not comparable" if strength is None else f"{strength:.3g}",
        "KL reached (nats)": policy["kl"] and f"{policy['kl']['mean']:.2f}",
        "sampled at temperature": settings.get("temperature"),
        "trained weights": f"LoRA, r = {settings['lora_r']}" if settings["use_peft"] else "all",
        "seconds": train["seconds"],
        "tokens trained on": train["tokens"],
    }
