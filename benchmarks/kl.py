"""Two estimates of the KL from the same replies: exact given the sampled prefixes, and the sampled tokens' log-ratio.

    python benchmarks/kl.py runs/demo --replies 200

Takes the first replies from the samples of a profile that 'make samples' has sampled. Needs both models in memory.
Standard errors, in nats, are of the mean over prompts, which holds what the KL differs between prompts and no estimator
can lower, and of the estimate given the prompts, from the spread of several replies to each.
"""

import argparse
from functools import partial
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
    options = parser.parse_args()
    frame = load_frame(str(options.profile / "sft"))
    print(f"{'policy':8}{'estimate':10}{'mean':>15}{'error':>15}{'given prompts':>15}{'lowest':>15}")
    for name in ("ppo", "grpo", "dpo"):
        folders = options.profile / name, options.profile / "sft"
        policy, sft = (load_policy(str(folder), frame.tokenizer, "float32").to(device()) for folder in folders)
        rows = read_jsonl(options.profile / f"samples/{name}.jsonl")[: options.replies]
        measures = [partial(kl.exact, policy, sft), *(partial(kl.log_probabilities, model) for model in (policy, sft))]
        exact, ours, theirs = (np.array(in_batches(measure, frame, 16, None, rows)) for measure in measures)
        for estimate, flat in (("exact", exact), ("sampled", ours - theirs)):
            values = flat.reshape(-1, rows[-1]["reply"] + 1)  # (prompts, replies)
            within = (values.var(axis=1, ddof=1).mean() / values.size) ** 0.5 if values.shape[1] > 1 else np.nan
            numbers = values.mean(), values.mean(1).std(ddof=1) / len(values) ** 0.5, within, values.min()
            print(f"{name:8}{estimate:10}" + "".join(f"{number:15.4f}" for number in numbers))


if __name__ == "__main__":
    main()
