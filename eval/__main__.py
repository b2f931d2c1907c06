"""Evaluate trained policies under matched conditions. The commands, each with --config configs/PROFILE.yaml:

    check         whether a profile can run here, and in how much memory (--profile in place of --config)
    data          what the data hold
    reward-model  the card of a reward model
    samples       replies of all policies to the same prompts
    score         reward, true rule and KL of the replies
    judge         the replies compared pair by pair
    report        ANALYSIS.md, report.html and summary.json from all of that
    compare       the last four for any policies: compare NAME=FOLDER NAME=FOLDER ...
    chat          talk to a policy (--policy in place of --config)

Options of a command: python -m eval COMMAND --help
"""

import ast
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from eval.config import ChatConfig, CompareConfig
from rlhf_trl.cli import cli, fill, parse, resume_garbage_collection
from rlhf_trl.config import DataConfig, TaskConfig
from rlhf_trl.errors import UserError
from rlhf_trl.files import lock
from rlhf_trl.pipeline import GraphConfig
from rlhf_trl.steps import STEPS

# Steps have a result of their own; the other commands have none
COMMANDS = {step.command[-1]: name for name, step in STEPS.items() if step.is_evaluation}
COMMANDS |= {"check": (GraphConfig,), "compare": (TaskConfig, DataConfig, CompareConfig), "chat": (ChatConfig,)}


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
    description = ast.get_docstring(ast.parse(source))  # before what takes long to import
    kind = COMMANDS[command]
    configs = parse(kind, description) if isinstance(kind, str) else fill(description, kind, sys.argv[1:])[0]
    run = import_module(module).main
    resume_garbage_collection()
    is_step = isinstance(kind, str) and os.environ.get("RANK", "0") == "0"
    with lock(configs[0].folder) if is_step else nullcontext():
        run(*configs)


if __name__ == "__main__":
    main()
