"""Evaluate trained policies under matched conditions. The commands, each with --config configs/PROFILE/eval.yaml:

    data          what the data hold
    reward-model  the card of a reward model
    samples       replies of all policies to the same prompts
    score         the same, and reward, true rule and KL of the replies
    judge         the replies compared pair by pair
    report        ANALYSIS.md, report.html and summary.json from all of that
    compare       the last three for any policies: compare NAME=FOLDER NAME=FOLDER ...

Options of a command: python -m eval COMMAND --help
"""

import importlib
import os
import sys

from rlhf_trl.errors import UserError, cli

COMMANDS = ("data", "reward-model", "samples", "score", "judge", "report", "compare")


@cli
def main() -> None:
    command = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(__doc__.strip())
    elif command not in ("samples", "score") and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"{command} runs in one process; only samples and score share their work out")
    elif command in COMMANDS:
        importlib.import_module(f"eval.{command.replace('-', '_')}").main()
    else:
        raise UserError(f"unknown command {command}; choose one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
