"""Kill every recipe with -9 again and again, and compare what its resumed runs end with to an unbroken run.

    make chaos
    python benchmarks/chaos.py runs/demo --seed 1

Trains a short run of each recipe on the demo's data from its SFT and reward model: once unbroken, then once for each
moment of `MOMENTS`, killed there and started again by the same command. Ends with exit code 1 if a killed run
left something that passes for a result, or if a resumed one differs from the unbroken run in its steps, its counters
or, by more than `TOLERANCE`, its weights.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from safetensors.numpy import load_file

STEPS, SAVE_STEPS = 24, 8  # between GRPO's rollouts, whose samples are no part of a checkpoint
TOLERANCE = 1e-5
MOMENTS = ("start-up", "mid-step", "while saving", "near the end", "any time")

BATCH = {"sft": 32, "reward": 32, "ppo": 8, "grpo": 32, "dpo": 32}  # sequences a device
LENGTH = {"ppo": ["--total_episodes", STEPS * 2 * BATCH["ppo"]]}  # two micro-batches a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of the demo profile, with sft and reward trained")
    parser.add_argument("--recipes", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    options = parser.parse_args()
    random.seed(options.seed)
    failures = 0
    print(f"{'recipe':8}{'killed':14}{'steps done':>12}{'checkpoint':>12}{'weights differ by':>20}  verdict")
    for recipe in options.recipes:
        folder = options.demo / "chaos" / recipe
        shutil.rmtree(folder, ignore_errors=True)
        command = train(recipe, options.demo, folder / "unbroken" / recipe)
        start = time.time()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        seconds = time.time() - start
        for number, moment in enumerate(MOMENTS):
            run = folder / str(number) / recipe
            state = kill(train(recipe, options.demo, run), run, moment, seconds)
            again = subprocess.run(train(recipe, options.demo, run), capture_output=True, text=True)
            problems = [] if again.returncode == 0 else [again.stderr.strip().splitlines()[-1]]
            difference, found = compare(folder / "unbroken" / recipe, run) if not problems else (float("nan"), [])
            problems += state["problems"] + found
            failures += bool(problems)
            print(
                f"{recipe:8}{moment:14}{state['steps']:>12}{state['checkpoint']:>12}{difference:>20.1e}"
                f"  {'; '.join(problems) or 'as unbroken'}",
                flush=True,
            )
    print(f"{failures} of {len(options.recipes) * len(MOMENTS)} killed runs differ; they are in {options.demo}/chaos")
    sys.exit(failures > 0)


def train(recipe: str, demo: Path, output: Path) -> list[str]:
    """The command of one short run."""
    options = [
        *("--config", f"configs/demo/{recipe}.yaml", "--dataset", demo / "dataset", "--output_dir", output),
        *("--model_name_or_path", demo / ("model" if recipe == "sft" else "sft")),
        *(["--reward_model_path", demo / "reward"] if recipe in ("ppo", "grpo", "dpo") else []),
        *("--per_device_train_batch_size", BATCH[recipe], "--save_steps", SAVE_STEPS, "--logging_steps", 1),
        *LENGTH.get(recipe, ["--max_steps", STEPS]),
    ]
    return [sys.executable, f"recipes/{recipe}.py", *map(str, options)]


def kill(command: list[str], run: Path, moment: str, seconds: float) -> dict:
    """Start a run and kill it at the moment, which is watched for in its staging folder; what it left behind.

    `seconds` is what an unbroken run takes.
    """
    staging = run.with_name(f"{run.name}.partial")
    metrics = staging / "metrics.jsonl"
    after = random.randrange(1, STEPS - 1)
    late = random.uniform(0, seconds)
    saved = random.randrange(STEPS // SAVE_STEPS - 1)  # complete checkpoints at the kill
    reached = {
        "start-up": lambda: staging.exists() or time.time() - start > late / 2,
        "mid-step": lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= after,
        "while saving": lambda: any(is_half(path) and step(path) > saved * SAVE_STEPS for path in newest(staging)),
        "near the end": lambda: (staging / "trained.json").exists(),
        "any time": lambda: time.time() - start > late,
    }[moment]
    start = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not reached() and process.poll() is None:
        time.sleep(0.001)
    if process.poll() is not None:  # it was faster than the moment
        shutil.rmtree(run.parent)
        return kill(command, run, moment, seconds / 2)
    process.kill()
    process.wait()
    return {
        "steps": metrics.read_bytes().count(b"\n") if metrics.exists() else 0,
        "checkpoint": ", ".join(f"{step(path)}{' (half)' * is_half(path)}" for path in newest(staging)) or "none",
        "problems": ["the killed run passes for a result"] if run.exists() else [],
    }


def newest(staging: Path) -> list[Path]:
    """The newest checkpoint, complete or not; none if there is none."""
    return sorted(staging.glob("checkpoint-*"), key=step)[-1:]


def step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def is_half(checkpoint: Path) -> bool:
    """Whether a checkpoint is not sealed; the last one of a training never is."""
    return not (checkpoint / "sealed.json").exists()


def compare(unbroken: Path, resumed: Path) -> tuple[float, list[str]]:
    """The largest difference of the weights, and what else differs that must not."""
    problems = []
    rows, others = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (resumed, unbroken)
    )
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
