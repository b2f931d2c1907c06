"""The evaluation that all methods share: `python -m eval --help`."""
