"""Runs recipes and `score`, one after another, for torchrun: `two_processes.py NAME=CONFIG ...`. One start, not ten.

NAME:STEP=CONFIG stops the training after that step; the same job without STEP then goes on.
"""

import importlib
import sys
from contextlib import suppress

from accelerate import PartialState
from transformers.trainer_callback import DefaultFlowCallback


class Stopped(Exception):
    pass


def stop(self, args, state, control, **_):
    if str(state.global_step) == last:
        raise Stopped


DefaultFlowCallback.on_step_begin = stop
for job in sys.argv[1:]:
    name, _, config = job.partition("=")
    name, _, last = name.partition(":")
    sys.argv = [name, *(["score"] if name == "score" else []), "--config", config]
    with suppress(Stopped):
        importlib.import_module("eval.__main__" if name == "score" else f"recipes.{name}").main()
    PartialState().wait_for_everyone()  # the main process publishes alone
