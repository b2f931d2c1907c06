"""Evaluate trained policies under matched conditions. The commands, each with --config configs/PROFILE/eval.yaml:

    check         whether a profile can run here, and in how much memory (--profile in place of --config)
    data          what the data hold
    reward-model  the card of a reward model
    samples       replies of all policies to the same prompts
    score         the same, and reward, true rule and KL of the replies
    judge         the replies compared pair by pair
    report        ANALYSIS.md, report.html and summary.json from all of that
    compare       the last three for any policies: compare NAME=FOLDER NAME=FOLDER ...
    chat          talk to a policy (--policy in place of --config)

Options of a command: python -m eval COMMAND --help
"""

import ast
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from eval.config import CONFIGS, ChatConfig, CheckConfig, PadConfig, TokenizerConfig
from rlhf_trl.config import parse
from rlhf_trl.errors import UserError, cli, imports_are_over

COMMANDS = {
    "check": (CheckConfig,),
    "chat": (ChatConfig,),
    "data": (*CONFIGS, TokenizerConfig),
    "reward-model": (*CONFIGS, PadConfig),
    **dict.fromkeys(("samples", "score", "judge", "report", "compare"), CONFIGS),
}


@cli
def main() -> None:
    command = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(__doc__.strip())
        return
    if command not in COMMANDS:
        raise UserError(f"unknown command {command}; choose one of {', '.join(COMMANDS)}")
    if command not in ("samples", "score") and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"{command} runs in one process; only samples and score share their work out")
    if command == "compare" and len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--policies")
    module = f"eval.{command.replace('-', '_')}"
    source = Path(find_spec(module).origin).read_text(encoding="utf-8")
    configs = parse(ast.get_docstring(ast.parse(source)), *COMMANDS[command])  # before what takes long to import
    run = import_module(module).main
    imports_are_over()
    run(*configs)


if __name__ == "__main__":
    main()
