"""Runs steps, one after another, for torchrun: `two_processes.py NAME=CONFIG ...`. One start, not ten.

NAME:STEP=CONFIG stops the training after that step; the same job without STEP then goes on.
"""

import importlib
import sys
from contextlib import suppress

from accelerate import PartialState
from transformers.trainer_callback import DefaultFlowCallback

from rlhf_trl.steps import STEPS


class Stopped(Exception):
    pass


def stop(self, args, state, control, **_):
    if str(state.global_step) == last:
        raise Stopped


DefaultFlowCallback.on_step_begin = stop
for job in sys.argv[1:]:
    name, _, config = job.partition("=")
    name, _, last = name.partition(":")
    command = STEPS[name].command
    sys.argv = [name, *command[2:], "--config", config]  # behind "-m eval", or a recipe's file
    with suppress(Stopped):
        importlib.import_module("eval.__main__" if command[0] == "-m" else f"recipes.{name}").main()
    PartialState().wait_for_everyone()  # the main process publishes alone
