"""Two estimates of the KL from the same replies: exact given the sampled prefixes, and the sampled tokens' log-ratio.

    python benchmarks/kl.py runs/demo --replies 200

Takes one reply to each of the first prompts from the samples of a profile that 'make samples' has sampled. Needs both
models in memory. Standard errors are over replies, in nats.
"""

import argparse
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from eval import kl
from eval.files import read_jsonl
from eval.score import in_batches
from rlhf_trl.models import device, load_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path, help="folder of a profile, with run folders and samples")
    parser.add_argument("--replies", type=int, default=200)
    parser.add_argument("--policies", nargs="+", default=["ppo", "grpo", "dpo"])
    parser.add_argument("--reference", default="sft")
    options = parser.parse_args()
    folder = str(options.profile / options.reference)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = load_policy(folder, tokenizer, "float32").to(device())
    print(f"{'policy':8}{'exact':>8}{'error':>8}{'lowest':>9}{'sampled':>9}{'error':>8}{'lowest':>9}{'errors':>8}")
    for name in options.policies:
        policy = load_policy(str(options.profile / name), tokenizer, "float32").to(device())
        rows = [row for row in read_jsonl(options.profile / f"samples/{name}.jsonl") if row["reply"] == 0]

        def read(compute, rows=rows[: options.replies]) -> np.ndarray:
            return np.array(in_batches(compute, tokenizer, 16, None, rows))

        exact = read(lambda *ids, policy=policy: kl.exact(policy, reference, *ids))
        sampled = read(lambda *ids, policy=policy: kl.log_probabilities(policy, *ids))
        sampled -= read(lambda *ids: kl.log_probabilities(reference, *ids))
        errors = [values.std(ddof=1) / len(values) ** 0.5 for values in (exact, sampled)]
        print(
            f"{name:8}{exact.mean():8.4f}{errors[0]:8.4f}{exact.min():9.4f}"
            f"{sampled.mean():9.4f}{errors[1]:8.4f}{sampled.min():9.4f}{errors[1] / errors[0]:8.1f}"
        )


if __name__ == "__main__":
    main()
