"""What the compared runs have in common, as far as their manifests show it, and what sets them apart."""

import itertools
from collections.abc import Iterable
from typing import Any

from eval.analysis.results import Results
from rlhf_trl import kl

ONLINE = {"total_episodes", "num_generations"}  # settings of those that sample while they train: PPO, GRPO
# Settings that the parents' and data's hashes stand for, or that say where a run is
OF_A_RUN = {"seed", "data_seed", "output_dir", "dataset", "model_name_or_path", "reward_model_path"}


def shared(results: Results) -> list[dict]:
    """What matched conditions ask for, and whether each `holds`; nothing where manifests or settings are missing."""
    names, runs, settings = results.names, results.runs, results.settings
    if not (runs.keys() >= {*names, "reward"} and settings.keys() >= set(names)):
        return []
    compared = _trained(results)
    scaled = [name for name in compared if "reward_model" in runs[name]["made_of"]]
    online = [name for name in compared if settings[name].keys() & ONLINE]
    offline = [name for name in compared if name not in online]
    data = {name: run["data"]["sha256"] for name, run in runs.items()}
    starts = {runs[name]["made_of"]["model"]["sha256"] for name in compared}
    rewards = {runs[name]["made_of"]["reward_model"]["sha256"] for name in scaled}
    checks = [
        (f"{listed(compared)} started from one model", True)
        if compared == names
        else (f"{listed(compared)} started from {names[0]}", starts == {runs[names[0]]["sha256"]})
    ]
    if scaled:
        scorer = results.scored["made_of"]["reward_model"]["sha256"]
        what = f"the reward model that scores the replies is the one behind {listed(scaled)}"
        checks.append((what, rewards == {scorer}))
    if len(online) > 1:
        same = len({data[name] for name in online}) == 1
        checks.append((f"{listed(online)} learned on the same prompts", same))
    if offline:
        same = {data[name] for name in offline} == {data["reward"]}
        checks.append((f"{listed(offline)} learned from the pairs of the reward model", same))
    checks.append(("all have one seed", len({runs[name]["seed"] for name in names}) == 1))
    return [{"what": what, "holds": holds} for what, holds in checks]


def listed(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def same_method(results: Results) -> list[tuple[str, str]]:
    """Pairs of runs of one method, settings, data and models, with another seed: chance is all that sets them apart."""
    runs = results.runs
    made_of = {
        name: [
            {key: value for key, value in own.items() if key not in OF_A_RUN},
            {role: parent["sha256"] for role, parent in runs[name]["made_of"].items()},
            runs[name]["data"]["rows"],
        ]
        for name, own in results.settings.items()
        if name in runs
    }
    return [
        (a, b)
        for a, b in itertools.combinations(made_of, 2)
        if made_of[a] == made_of[b] and runs[a]["seed"] != runs[b]["seed"]
    ]


def differences(results: Results, policies: dict[str, dict]) -> dict[str, dict[str, Any]]:
    """What sets the methods' runs apart: a row for each quantity, with a value for each run; None where it has none.

    `policies` holds what is measured of each policy's replies.
    """
    reward_std = results.scored["scale"]["std"]
    columns = {
        name: _column(results.settings[name], results.runs[name], policies[name], reward_std)
        for name in _trained(results)
        if name in results.settings and name in results.runs
    }
    rows = next(iter(columns.values()), {})
    return {row: {name: column[row] for name, column in columns.items()} for row in rows}


def _trained(results: Results) -> list[str]:
    """The policies whose training is compared: all but the reference (the first), unless it started where they did."""
    names, runs = results.names, results.runs
    starts = {runs[name]["made_of"]["model"]["sha256"] if name in runs else None for name in names}
    return names if len(starts) == 1 and None not in starts else names[1:]


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
        "KL reached (nats)": policy["kl"] and f"{policy['kl'].mean:.2f}",
        "sampled at temperature": settings.get("temperature"),
        "trained weights": f"LoRA, r = {settings['lora_r']}" if settings["use_peft"] else "all",
        "seconds": train["seconds"],
        "tokens trained on": train["tokens"],
    }
