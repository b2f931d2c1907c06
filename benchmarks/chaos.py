"""Kill every recipe with -9 again and again, and compare what its resumed runs end with to an unbroken run.

    make chaos
    python benchmarks/chaos.py runs/demo --recipes ppo

Trains a short run of each recipe on the demo's data from its SFT and reward model: once unbroken, then once for each
of `MOMENTS`, killed there and started again by the same command. Ends with exit code 1 if a killed run left something
that passes for a result, or if a resumed one differs from the unbroken run in its steps, its counters or, by more than
`TOLERANCE`, its weights.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from safetensors.numpy import load_file
from setups import command, profile_settings

from rlhf_trl.files import read_jsonl

STEPS, SAVE_STEPS = 24, 8  # between GRPO's rollouts, whose samples are no part of a checkpoint
TOLERANCE = 1e-5
MOMENTS = ("start-up", "mid-step", "while saving", "near the end", "any time")
BATCH = {"sft": 32, "reward": 32, "ppo": 8, "grpo": 32, "dpo": 32}  # sequences a device
QUIETLY = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of the demo profile, with sft and reward trained")
    parser.add_argument("--recipes", nargs="+", default=list(BATCH), choices=list(BATCH))
    options = parser.parse_args()
    failures = 0
    print(f"{'recipe':8}{'killed':14}{'steps done':>12}{'checkpoint':>12}{'weights differ by':>20}  verdict")
    for recipe in options.recipes:
        folder = options.demo / "chaos" / recipe
        shutil.rmtree(folder, ignore_errors=True)
        unbroken, start = folder / "unbroken" / recipe, time.time()
        subprocess.run(training(recipe, options.demo, unbroken), **QUIETLY, check=True)
        seconds = time.time() - start
        for moment in MOMENTS:
            run = folder / moment.replace(" ", "-") / recipe
            words = training(recipe, options.demo, run)
            steps, checkpoint = kill(words, run, moment, seconds)
            difference, problems = float("nan"), ["the killed run passes for a result"] if run.exists() else []
            again = subprocess.run(words, capture_output=True, text=True)
            if again.returncode:
                problems.append(again.stderr.strip().splitlines()[-1])
            else:
                difference, others = compare(unbroken, run)
                problems += others
            failures += bool(problems)
            verdict = "; ".join(problems) or "as unbroken"
            print(f"{recipe:8}{moment:14}{steps:>12}{checkpoint:>12}{difference:>20.1e}  {verdict}", flush=True)
    print(f"{failures} of {len(options.recipes) * len(MOMENTS)} killed runs differ; they are in {options.demo}/chaos")
    sys.exit(failures > 0)


def training(recipe: str, demo: Path, output: Path) -> list[str]:
    """The command of one short run."""
    settings = profile_settings(demo, recipe) | {"dataset": str(demo / "dataset"), "output_dir": str(output)}
    settings["model_name_or_path"] = str(demo / ("model" if recipe == "sft" else "sft"))
    if recipe in ("ppo", "grpo", "dpo"):
        settings["reward_model_path"] = str(demo / "reward")
    settings |= {"per_device_train_batch_size": BATCH[recipe], "save_steps": SAVE_STEPS, "logging_steps": 1}
    # PPO counts in episodes: two micro-batches a step
    settings |= {"total_episodes": STEPS * 2 * BATCH["ppo"]} if recipe == "ppo" else {"max_steps": STEPS}
    output.parent.mkdir(parents=True, exist_ok=True)
    return [sys.executable, *command(f"recipes/{recipe}.py", settings, output.with_suffix(".yaml"))]


def kill(words: list[str], run: Path, moment: str, seconds: float) -> tuple[int, str]:
    """Start a run and kill it at the moment, which is watched for in its staging folder.

    Args:
        seconds: what an unbroken run takes.

    Returns:
        The steps that it recorded, and its newest checkpoint.
    """
    staging = run.with_name(f"{run.name}.partial")
    metrics = staging / "metrics.jsonl"
    after, late = random.randrange(1, STEPS - 1), random.uniform(0, seconds)
    saved = random.randrange(STEPS // SAVE_STEPS - 1) * SAVE_STEPS  # steps of the last complete checkpoint at the kill

    def is_saving() -> bool:
        steps, sealed = newest_checkpoint(staging)
        return steps > saved and not sealed

    reached = {
        "start-up": lambda: staging.exists() or time.time() - start > late / 2,
        "mid-step": lambda: len(read_jsonl(metrics)) >= after,
        "while saving": is_saving,
        "near the end": lambda: (staging / "trained.json").exists(),
        "any time": lambda: time.time() - start > late,
    }[moment]
    start = time.time()
    process = subprocess.Popen(words, **QUIETLY)
    while not reached() and process.poll() is None:
        time.sleep(0.001)
    if process.poll() is not None:  # it was faster than the moment
        shutil.rmtree(run)
        return kill(words, run, moment, seconds / 2)
    process.kill()
    process.wait()
    steps, sealed = newest_checkpoint(staging)
    return len(read_jsonl(metrics)), f"{steps}{'' if sealed else ' (half)'}" if steps else "none"


def newest_checkpoint(staging: Path) -> tuple[int, bool]:
    """Steps of the newest checkpoint, 0 without one, and whether it is sealed; the last one of a training never is."""
    steps = max((int(path.name.partition("-")[2]) for path in staging.glob("checkpoint-*")), default=0)
    return steps, (staging / f"checkpoint-{steps}" / "sealed.json").exists()


def compare(unbroken: Path, resumed: Path) -> tuple[float, list[str]]:
    """The largest difference of the weights, and what else differs that must not."""
    problems = []
    rows, others = (read_jsonl(run / "metrics.jsonl") for run in (resumed, unbroken))
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)):
        problems.append("steps are missing, doubled or out of order")
    for counter in ("episode", "num_tokens", "learning_rate", "lr"):
        if rows[-1].get(counter) != others[-1].get(counter):
            problems.append(f"{counter} ends at {rows[-1].get(counter)}, not {others[-1].get(counter)}")
    weights, expected = load_file(resumed / "model.safetensors"), load_file(unbroken / "model.safetensors")
    difference = max(float(abs(weights[name] - expected[name]).max()) for name in expected)
    if difference > TOLERANCE:
        problems.append("other weights")
    return difference, problems


if __name__ == "__main__":
    main()
