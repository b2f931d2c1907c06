"""Evaluate trained policies under matched conditions.

    python -m eval score --config configs/gpt2/eval.yaml     sample every policy and score the replies
    python -m eval report --config configs/gpt2/eval.yaml    write ANALYSIS.md and summary.json

Options of a command: python -m eval COMMAND --help
"""

import importlib
import sys

from rlhf_trl.errors import UserError, cli

COMMANDS = ("data", "reward-model", "samples", "score", "judge", "report", "compare")


@cli
def main() -> None:
    command = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(__doc__.strip())
    elif command in COMMANDS:
        importlib.import_module(f"eval.{command.replace('-', '_')}").main()
    else:
        raise UserError(f"unknown command {command}; choose one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
