"""Runs recipes one after another, for torchrun: `two_processes.py RECIPE=CONFIG ...`. One start instead of ten."""

import importlib
import sys

from accelerate import PartialState

for job in sys.argv[1:]:
    recipe, _, config = job.partition("=")
    sys.argv = [recipe, "--config", config]
    importlib.import_module(f"recipes.{recipe}").main()
    PartialState().wait_for_everyone()  # the main process publishes alone
