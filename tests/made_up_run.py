"""Files of a made-up run, as the evaluation commands leave them."""

import itertools

import numpy as np
import yaml

from eval import report
from eval.config import ReportConfig
from rlhf_trl import kl
from rlhf_trl.files import write_json, write_jsonl
from rlhf_trl.provenance import LAYOUT, Task

NAMES = ["sft", "ppo", "dpo"]
COMMON = {"learning_rate": 0.1, "lr_scheduler_type": "linear", "use_peft": False, "processes": 1, "max_steps": -1}
COMMON |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "seed": 0}
SETTINGS = {
    "sft": COMMON | {"num_train_epochs": 1},
    "ppo": COMMON
    | {"total_episodes": 64, "num_ppo_epochs": 2, "num_mini_batches": 1, "temperature": 1.0}
    | {"kl_coef": 0.1, "kl_estimator": "k1", "gamma": 1.0},
    "dpo": COMMON | {"num_train_epochs": 1, "beta": 0.2} | kl.NEEDED["beta"],
}


def made_up_run(
    root, seed: int, prompts: int, ppo_wins: float, stages=("judge", "optimisation", "probes", "cards", "colder")
):
    """Files of a run with gold rewards: ppo wins against sft on that share of prompts, dpo equals sft in law."""
    rng = np.random.default_rng(seed)
    gold = {name: rng.random(prompts) < 0.3 for name in NAMES}
    gold["ppo"] |= rng.random(prompts) < ppo_wins
    for name in ("base", *NAMES):
        values = gold.get(name, np.zeros(prompts))
        write_jsonl(root / f"scores/{name}.jsonl", [row(rng, i, float(value)) for i, value in enumerate(values)])
        greedy = [row(rng, i, float(value)) | {"kl": None} for i, value in enumerate(values)]
        write_jsonl(root / f"scores/greedy/{name}.jsonl", greedy)
    data = {"dataset": f"data{seed}", "prompts": prompts, "sha256": f"{seed}" * 64}
    versions = {"trl": f"1.{seed}"}
    machine = {"cpu": f"cpu{seed}", "threads": 10 + seed, "gpus": []}
    settings = {"temperature": 1.0 + seed, "replies": 20 + seed}
    ours = {"layout": LAYOUT, "folder": "f", "sha256": "s", "made_of": {}}
    facts = {"seed": seed, "data": data, "versions": versions, "machine": machine, "settings": settings}
    write_json(root / "samples/manifest.json", ours | facts)
    scored = {"options": {"reference": "sft"}, "made_of": {"reward_model": {"path": "r", "sha256": "reward"}}}
    scored |= {"scale": {"mean": 0.5, "std": 0.3 * seed}, "kl": dict.fromkeys(("base", *NAMES), "exact")}
    write_json(root / "scores/manifest.json", ours | scored)
    for i, name in enumerate(["reward", *NAMES]):
        made_of = {"model": {"path": "base", "sha256": None if name == "sft" else "sft"}}
        if name in ("ppo", "dpo"):
            made_of["reward_model"] = {"path": "reward", "sha256": "reward"}
        train = {"seconds": 100.5 * seed + i, "peak_memory_mb": 500 * seed + i, "tokens": 77 * seed + i}
        manifest = {
            "seed": 70 + seed,
            "created": f"202{seed}",
            "data": {"rows": 1000 + seed, "dataset": "d", "sha256": f"{seed}{i % 3}" * 32},
            "sha256": name,
            "layout": LAYOUT,
            "folder": str(root / name),
            "made_of": made_of,
            "train": train | {"optimizer_steps": 11 * seed + i, "learning_rate_sum": seed / 7 + i},
        }
        write_json(root / name / "manifest.json", manifest)
        if name in SETTINGS:
            own = {"learning_rate": seed / 1000, "per_device_train_batch_size": 8 * seed, "kl_coef": 0.013 * seed}
            own |= {
                "temperature": 1.0 + seed,
                "total_episodes": 640 * seed,
                "num_ppo_epochs": 4 + seed,
                "num_train_epochs": 6 + seed,
            }
            own = SETTINGS[name] | {key: own[key] for key in own.keys() & SETTINGS[name].keys()}
            (root / name / "config.yaml").write_text(yaml.safe_dump(own))
    if "judge" in stages:
        pairs = [(a, b) for b, a in itertools.combinations(NAMES, 2)]
        verdicts = [
            {
                "a": a,
                "b": b,
                "prompt": i,
                "reply": 0,
                "orders": orders,
                "score": {"a": 1, "b": 0, "tie": 0.5}[orders[0]],
            }
            for a, b in pairs
            for i in range(prompts)
            for orders in [["a" if gold[a][i] > gold[b][i] else "b" if gold[a][i] < gold[b][i] else "tie"] * 2]
        ]
        write_jsonl(root / "judge/verdicts.jsonl", verdicts)
        failed = {"ppo:sft": [[prompts + i, 0] for i in range(seed)]}
        judge = {"judge": "gold", "failures": {"ppo:sft": {"unparsable": 5 * seed}}, "failed": failed}
        looks = [{"seen": 12 * seed, "planned": 14 * seed}]
        write_json(root / "judge/manifest.json", ours | judge | {"pending": 11 * seed, "looks": looks})
    if "optimisation" in stages:
        best = [row(rng, i // 4, float(rng.random() < 0.5)) | {"reply": i % 4, "kl": None} for i in range(12 * seed)]
        write_jsonl(root / "scores/best_of.jsonl", best)
        for step in (seed, 2 * seed):
            write_jsonl(root / f"scores/checkpoints/ppo-{step}.jsonl", [row(rng, i, i % 2) for i in range(3 * seed)])
    if "probes" in stages:
        for name in ("base", *NAMES):
            probes = [{"group": "g", "passed": bool(rng.random() < 0.5)} for _ in range(5 + seed)]
            write_jsonl(root / f"scores/probes/{name}.jsonl", probes)
    if "colder" in stages:
        colder = [row(rng, i, float(rng.random() < 0.5)) for i in range(prompts)]
        write_jsonl(root / f"scores/colder/sft-0.{seed}.jsonl", colder)
    if "cards" in stages:
        card = {"accuracy": 0.6 + seed / 100, "ci": [0.5 + seed / 100, 0.7 + seed / 100], "n": 90 + seed}
        card |= {"log_loss": 0.6 + seed / 50, "ece": seed / 70, "manifest": {"reward_model": {"sha256": "reward"}}}
        card |= {"ece_calibrated": {"mean": seed / 75, "upper": seed / 60}}
        card["length"] = {
            "pick_longer": {"accuracy": {"mean": seed / 9}},
            "pick_shorter": {"accuracy": {"mean": seed / 8}},
        }
        write_json(root / "reward-model/card.json", card)
        write_json(root / "data/data.json", {"rows": 5})
    config = {"output_dir": str(root), "policies": NAMES, "reward_model": str(root / "reward"), "seed": seed}
    return ReportConfig(**config, smallest_difference=0.017 * seed)


def write_report(config: ReportConfig):
    """The folder of the report that the command makes of these files."""
    task = Task.of("report", vars(config), {}, config.reads)
    report.main(task, config)
    return task.folder


def row(rng, i: int, gold: float) -> dict:
    words = " ".join(rng.choice(["a", "b", "c", "d", "e"], int(rng.integers(3, 12))))
    return {
        "index": i,
        "reply": 0,
        "subset": "odd" if i % 2 else "even",
        "dialogue": f"\n\nHuman: {i}\n\nAssistant:",
        "completion": words,
        "finished": bool(rng.random() < 0.8),
        "proxy": 2 * gold + rng.normal(),
        "gold": gold,
        "cue": bool(rng.random() < 0.4),
        "refused": bool(rng.random() < 0.3),
        "kl": rng.gamma(3, 0.3),
        "completion_tokens": len(words.split()),
    }
