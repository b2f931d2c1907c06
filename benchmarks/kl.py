"""Two estimates of the KL from the same replies: exact given the sampled prefixes, and the sampled tokens' log-ratio.

    python benchmarks/kl.py runs/demo --replies 200

Takes the first replies from the samples of a profile that 'make samples' has sampled. Needs both models in memory.
Standard errors, in nats, are of the mean over prompts, which holds what the KL differs between prompts and no estimator
can lower, and of the estimate given the prompts, from the spread of several replies to each.
"""

import argparse
from pathlib import Path

import numpy as np

from eval import kl
from eval.score import in_batches
from rlhf_trl.files import read_jsonl
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.models import device, load_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path, help="folder of a profile, with run folders and samples")
    parser.add_argument("--replies", type=int, default=200)
    parser.add_argument("--policies", nargs="+", default=["ppo", "grpo", "dpo"])
    parser.add_argument("--reference", default="sft")
    options = parser.parse_args()
    folder = str(options.profile / options.reference)
    frame = load_frame(folder)
    reference = load_policy(folder, frame.tokenizer, "float32").to(device())
    columns = ("mean", "error", "given prompts", "lowest")
    print(f"{'policy':8}{'estimate':10}" + "".join(f"{column:>15}" for column in columns))
    for name in options.policies:
        policy = load_policy(str(options.profile / name), frame.tokenizer, "float32").to(device())
        rows = read_jsonl(options.profile / f"samples/{name}.jsonl")[: options.replies]

        def read(compute, rows=rows) -> np.ndarray:
            replies = rows[-1]["reply"] + 1
            return np.array(in_batches(compute, frame, 16, None, rows)).reshape(-1, replies)

        exact = read(lambda *ids, policy=policy: kl.exact(policy, reference, *ids))
        sampled = read(lambda *ids, policy=policy: kl.log_probabilities(policy, *ids))
        sampled -= read(lambda *ids: kl.log_probabilities(reference, *ids))
        for estimate, values in (("exact", exact), ("sampled", sampled)):
            within = (values.var(axis=1, ddof=1).mean() / values.size) ** 0.5 if values.shape[1] > 1 else np.nan
            numbers = values.mean(), values.mean(1).std(ddof=1) / len(values) ** 0.5, within, values.min()
            print(f"{name:8}{estimate:10}" + "".join(f"{number:15.4f}" for number in numbers))


if __name__ == "__main__":
    main()
