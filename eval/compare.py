"""Compare any two or more policies, also ones that were not trained here.

    python -m eval compare NAME=FOLDER NAME=FOLDER ... --config configs/gpt2/eval.yaml --reward_model FOLDER

The first is the reference. Scores, judges and reports as for a profile, into OUTPUT_DIR/compare/NAMES.
"""

import importlib
import sys
from pathlib import Path

from eval.config import CONFIGS
from rlhf_trl.config import parse
from rlhf_trl.errors import UserError


def main() -> None:
    policies = []
    while len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        policies.append(sys.argv.pop(1))
    _, config, _ = parse(__doc__, *CONFIGS)
    names = [policy.partition("=")[0] for policy in policies]
    if len(set(names)) < 2 or len(names) > len(set(names)):
        raise UserError(
            "name two policies or more before the options, each once: compare a=FOLDER b=FOLDER --config FILE"
        )
    paths = [policy if "=" in policy else f"{policy}={Path(config.output_dir) / policy}" for policy in policies]
    folder = Path(config.output_dir) / "compare" / "-".join(names)
    places = ["--policies", *paths, "--output_dir", str(folder), "--reward_model", config.reward_model_folder]
    options = [*sys.argv[1:], *places]
    for command in ("score", "judge", "report"):
        sys.argv = [f"eval {command}", *options]
        importlib.import_module(f"eval.{command}").main()
