"""The report of a made-up run whose texts are nasty."""

import itertools
from pathlib import Path

import numpy as np
import yaml

from eval.config import ReportConfig
from rlhf_trl import kl
from rlhf_trl.files import write_json, write_jsonl
from rlhf_trl.provenance import LAYOUT
from tests.made_up_run import write_report

NAMES = ["sft", "ppo", "grpo", "dpo"]
PROMPTS, REPLIES = 30, 2
NASTY = [
    "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'>",
    "<!-- <script> &lt;b&gt; {{ 7 * 7 }} ${7 * 7} \\u003c https://example.com/x.png",
    "Grüße, 世界 👩‍🚀 עברית \u202eright to left\u2028next line\u0000 \ufffd \x1b[31m",
    "unbroken" * 60,
    "",
]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1200" height="300"><rect width="9" height="9"/></svg>'


def rows(rng, name: str, gold: bool, prompts: int = PROMPTS, replies: int = 1) -> list[dict]:
    return [row(rng, i, reply, name, gold) for i in range(prompts) for reply in range(replies)]


def row(rng, i: int, reply: int, name: str, gold: bool) -> dict:
    text = NASTY[i % len(NASTY)]
    return {
        "reply": reply,
        "subset": "<i>a</i>" if i % 3 else "b",
        "dialogue": f"\n\nHuman: Question {i:02} {text}\n\nAssistant:",
        "completion": f" {name} says{' again' * reply} {text}" if text else "",
        "finished": bool(rng.random() < 0.8),
        "proxy": round(float(rng.normal()), 1),  # with ties
        "gold": float(rng.random() < 0.5) if gold else None,
        "cue": bool(rng.random() < 0.5) if gold else None,
        "refused": bool(rng.random() < 0.1),
        "kl": float(rng.exponential()),
        "completion_tokens": int(rng.integers(1, 20)),
    }


def settings(name: str) -> dict:
    """What a run's `config.yaml` has, as far as a report reads it."""
    common = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "processes": 1, "max_steps": -1}
    common |= {"learning_rate": 1e-3, "lr_scheduler_type": "linear", "use_peft": name == "dpo", "lora_r": 4}
    own = {
        "ppo": {"total_episodes": 64, "num_ppo_epochs": 2, "num_mini_batches": 2, "kl_coef": 0.1},
        "grpo": {"num_generations": 4, "num_iterations": 1, "beta": 0.1},
    }
    needed = kl.NEEDED[{"ppo": "kl_coef", "grpo": "num_generations"}.get(name, "beta")]
    return common | own.get(name, {"num_train_epochs": 1, "beta": 0.1}) | needed


def made_up_run(root: Path, full: bool) -> Path:
    """A report of five policies, of two replies to each prompt; without `full` of one reply, and there is no gold
    reward, no judge, nothing else but runs."""
    rng = np.random.default_rng(0)
    replies = REPLIES if full else 1
    for name in ("base", *NAMES):
        write_jsonl(root / f"scores/{name}.jsonl", rows(rng, name, full, replies=replies))
    data = {"dataset": "<b>data</b>", "rows": 1000, "prompts": PROMPTS, "sha256": "0" * 64}
    machine = {"cpu": "<b>cpu</b>", "threads": 2, "gpus": ["gpu"]}
    samples = {
        "seed": 0,
        "data": data,
        "versions": {"trl": "1"},
        "machine": machine,
        "settings": {"temperature": 1.0, "replies": replies},
    }
    ours = {"layout": LAYOUT, "folder": "f", "sha256": "s", "made_of": {}}
    write_json(root / "samples/manifest.json", ours | samples)
    scored = {"options": {"reference": "sft"}, "made_of": {"reward_model": {"path": "r", "sha256": "reward"}}}
    scored |= {"scale": {"mean": 0.0, "std": 1.0}, "kl": {"ppo": "sampled", "grpo": "exact"}}
    write_json(root / "scores/manifest.json", ours | scored)
    for name in ("reward", *NAMES):
        train = {"seconds": 10.5, "peak_memory_mb": 700, "tokens": 123456}
        train |= {"optimizer_steps": 16, "learning_rate_sum": 0.008}
        manifest = {"seed": 1, "created": "2026-01-01", "data": data, "sha256": name, "train": train}
        manifest["made_of"] = {"model": {"path": "base", "sha256": None if name == "sft" else "sft"}}
        if full and name in NAMES[1:]:
            manifest["made_of"]["reward_model"] = {"path": "reward", "sha256": "reward"}
        write_json(root / name / "manifest.json", ours | manifest)
        if full:
            (root / name / "config.yaml").write_text(yaml.safe_dump(settings(name)))
        for curves in (root / name / "curves.svg", root / name / "curves.png"):
            curves.write_text(SVG)
    if full:
        pairs = [(b, a) for a, b in itertools.combinations(NAMES, 2)]
        orders = [["a", "a"], ["a", "b"], ["b", "b"], ["tie", "a"]]
        verdicts = [
            {"a": prefix + a, "b": prefix + b, "prompt": i, "reply": reply}
            | {"orders": orders[(i + reply) % 4], "score": [1.0, 0.5, 0.0, 0.75][(i + reply) % 4]}
            for prefix, of_each in (("", REPLIES), ("greedy/", 1))
            for a, b in pairs
            for i in range(20)
            for reply in range(of_each)
        ]
        write_jsonl(root / "judge/verdicts.jsonl", verdicts)
        manifest = {"judge": "openai", "model": "m", "failures": {"ppo:sft": {"unparsable": 2}}, "pending": 1}
        manifest |= {"failed": {"ppo:sft": [[20, 0]]}, "looks": [{"seen": 9, "planned": 20}]}
        write_json(root / "judge/manifest.json", ours | manifest)
        write_jsonl(root / "scores/best_of.jsonl", rows(rng, "sft", full, prompts=10, replies=4))
        write_jsonl(root / "scores/colder/sft-0.7.jsonl", rows(rng, "sft", full, replies=REPLIES))
        for name in NAMES[1:]:
            write_jsonl(root / f"scores/checkpoints/{name}-6.jsonl", rows(rng, name, full, prompts=10, replies=REPLIES))
        for name in ("base", *NAMES):
            write_jsonl(root / f"scores/greedy/{name}.jsonl", rows(rng, name, full))
            write_jsonl(root / f"scores/probes/{name}.jsonl", [{"group": "kept_abilities", "passed": True}])
        baselines = {name: {"accuracy": {"mean": 0.5}} for name in ("pick_longer", "pick_shorter")}
        card = {"accuracy": 0.7, "ci": [0.6, 0.8], "n": 90, "log_loss": 0.6, "ece": 0.1, "length": baselines}
        card["ece_calibrated"] = {"mean": 0.03, "upper": 0.06}
        card["manifest"] = {"reward_model": {"sha256": "reward"}}
        write_json(root / "reward-model/card.json", card)
        write_json(root / "data/data.json", {"rows": 5})
        for stem, suffix in itertools.product(("reward_distributions", "reliability"), (".svg", ".png")):
            (root / f"reward-model/{stem}{suffix}").write_text(SVG)
    return write_report(ReportConfig(output_dir=str(root), policies=NAMES)) / "report.html"
