"""Sample every policy on the same held-out prompts and score the replies.

    make score PROFILE=gpt2
    python -m eval score --config configs/gpt2/eval.yaml --prompts 100

Writes to OUTPUT_DIR/eval: `policies/NAME.jsonl` with one reply a line (its text, length, whether it
finished, its standardised proxy reward, its gold reward where there is a rule, and log pi - log pi_ref,
whose mean is the sequence KL) and `reward_model.jsonl` with the reward model's scores of held-out pairs.
"""

import gc
import json
import shutil
from pathlib import Path

from eval.config import GOLD_RULES, EvalConfig
from eval.sample import log_probabilities, sample
from rlhf_trl.config import parse
from rlhf_trl.data import DataConfig, build_dataset, fingerprint, load_tokenizer
from rlhf_trl.errors import UserError
from rlhf_trl.hub import check_source
from rlhf_trl.models import device, is_reward_model, load_policy
from rlhf_trl.rewards import load_reward_model, score
from rlhf_trl.runs import machine, versions


def main() -> None:
    data_config, config = parse(__doc__, DataConfig, EvalConfig)
    root = Path(config.output_dir)
    for name in config.policies:
        check_source(str(root / name))
    if not is_reward_model(str(root / "reward")):
        raise UserError(f"{root / 'reward'} holds no reward model; run 'make reward' first")
    tokenizer = load_tokenizer(str(root / config.policies[0]))
    pairs = build_dataset(data_config, "eval", tokenizer, config.seed)
    prompts = pairs.select(range(min(config.prompts, len(pairs))))
    prompt_ids = prompts["prompt_ids"]

    # Sample each policy; then let the reference judge how likely it would have been to say the same
    completions, logps = {}, {}
    for name in config.policies:
        policy = load_policy(str(root / name), config.dtype).to(device())
        completions[name] = sample(
            policy, tokenizer, prompt_ids, config.max_new_tokens, config.batch_size, config.seed, f"{name}: sampling"
        )
        logps[name] = log_probabilities(
            policy, prompt_ids, completions[name], config.batch_size, f"{name}: own log-probabilities"
        )
        del policy
        gc.collect()
    reference = load_policy(str(root / config.policies[0]), config.dtype).to(device())

    sequences = {
        name: [prompt + ids for prompt, ids in zip(prompt_ids, completions[name], strict=True)] for name in completions
    }
    reference_logps = {
        name: log_probabilities(
            reference, prompt_ids, completions[name], config.batch_size, f"{name}: reference log-probabilities"
        )
        for name in completions
    }
    del reference
    gc.collect()
    reward_model = load_reward_model(str(root / "reward"), dtype=config.dtype).to(device())

    staging = root / "eval.partial"
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "policies").mkdir(parents=True)
    for name in config.policies:
        proxy = score(reward_model, sequences[name], config.batch_size, f"{name}: proxy reward")
        texts = tokenizer.batch_decode(completions[name], skip_special_tokens=True)
        gold = GOLD_RULES.get(config.gold_rule)
        rows = [
            {
                "prompt": prompts[i]["prompt"],
                "completion": texts[i],
                "completion_tokens": len(completions[name][i]),
                "finished": completions[name][i][-1] == tokenizer.eos_token_id,
                "proxy": proxy[i].item(),
                "gold": gold(prompts[i]["prompt"], texts[i]) if gold else None,
                "log_ratio": (logps[name][i] - reference_logps[name][i]).item(),
            }
            for i in range(len(prompts))
        ]
        _write(staging / "policies" / f"{name}.jsonl", rows)

    sides = {
        side: score(
            reward_model,
            [prompt + ids for prompt, ids in zip(pairs["prompt_ids"], pairs[f"{side}_ids"], strict=True)],
            config.batch_size,
            f"reward model: {side}",
        )
        for side in ("chosen", "rejected")
    }
    _write(
        staging / "reward_model.jsonl",
        [
            {
                **{key: pair[key] for key in ("subset", "prompt", "chosen", "rejected")},
                "scores_chosen": chosen.item(),
                "scores_rejected": rejected.item(),
            }
            for pair, chosen, rejected in zip(pairs, sides["chosen"], sides["rejected"], strict=True)
        ],
    )
    manifest = {
        "seed": config.seed,
        "data": {"dataset": data_config.dataset, "pairs": len(pairs), "sha256": fingerprint(pairs)},
        "versions": versions(),
        "machine": machine(),
    }
    (staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(root / "eval", ignore_errors=True)
    staging.rename(root / "eval")
    print(f"Replies and scores of {', '.join(config.policies)} are in {root / 'eval'}")


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
