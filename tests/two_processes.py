"""Runs recipes and `score`, one after another, for torchrun: `two_processes.py NAME=CONFIG ...`. One start, not ten."""

import importlib
import sys

from accelerate import PartialState

for job in sys.argv[1:]:
    name, _, config = job.partition("=")
    sys.argv = [name, *(["score"] if name == "score" else []), "--config", config]
    importlib.import_module("eval.__main__" if name == "score" else f"recipes.{name}").main()
    PartialState().wait_for_everyone()  # the main process publishes alone
