"""A profile: one YAML file with what all steps share, and a section for each step.

A key at the top goes to every step that has such an option; the section `eval` does so for the steps of the evaluation,
and one named after a step overrides both for it. A file without any section is the options of one step.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from rlhf_trl.config import RECIPES
from rlhf_trl.errors import UserError
from rlhf_trl.steps import STEPS, options_of

BASE, WORLD = "base_model", "world"  # keys that the graph reads: what SFT starts from; a made-up world to learn in
BASE_OPTIONS = {"sft": "model_name_or_path", "data": "tokenizer"}  # what the base is called, by step
EVALUATION, ALL = "eval", "all"
FROM_THE_GRAPH = {"output_dir", "model_name_or_path", "reward_model_path", "tokenizer", "fresh"}
PER_METHOD = {"beta", "learning_rate", "max_steps"}  # which mean another thing in each method


def read_profile(path: str | Path) -> dict[str, Any]:
    """The content of a profile, or of a file with the options of one step.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader) or {}
    except OSError as error:
        raise UserError(f"the config {path} cannot be read ({error.strerror}); check the path") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold 'key: value' lines")
    for name in sections(content):
        if not isinstance(content[name], dict | None):
            raise UserError(f"{path}: {name} is a section and must hold 'key: value' lines")
    return content


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"{twice} stands there twice")
        return super().construct_mapping(node, deep)


def sections(content: dict[str, Any]) -> list[str]:
    """The sections of a profile; none in a file that is the options of one step. `judge: gold` is an option."""
    named = [name for name in content if name in (*STEPS, EVALUATION)]
    return [name for name in named if not (name == "judge" and isinstance(content[name], str))]


def profile_values(path: str | Path, content: dict[str, Any], step: str, folder: Path) -> dict[str, Any]:
    """The options of a step: from the graph, overridden by the profile. A file without sections is taken literally.

    Args:
        folder: the profile's, in which each step has its place.

    Raises:
        UserError: a key that no step has, or that has no place at the top.
    """
    if not sections(content):
        return content
    scopes = {ALL: {key: value for key, value in content.items() if key not in sections(content)}}
    scopes |= {name: content[name] or {} for name in sections(content)}
    for scope, given in scopes.items():
        check_keys(scope, given, f"{path}: " if scope == ALL else f"{path}: {scope}: ")
    values = from_the_graph(scopes[ALL], list(scopes), step, folder)
    for scope in scopes_of(step):
        values |= scopes.get(scope, {})
    return {key: value for key, value in values.items() if key in options_of(step)}


def from_the_graph(shared: dict[str, Any], named: Iterable[str], step: str, folder: Path) -> dict[str, Any]:
    """What the place of a step in the graph says: where its result goes and what it starts from."""
    base = shared.get(BASE)
    values: dict[str, Any] = {}
    if policies := [name for name, recipe in RECIPES.items() if recipe.compared and name in named]:
        values["policies"] = policies
    if world := shared.get(WORLD):
        if world != "demo":
            raise UserError(f"unknown world {world}; choose demo")
        base = base or str(folder / "model")
        values["dataset"] = str(folder / "dataset")
    values["output_dir"] = str(folder / step if step in RECIPES else folder)
    values |= {"model_name_or_path": str(folder / "sft"), "reward_model_path": str(folder / "reward")}
    return values | ({BASE_OPTIONS[step]: base} if step in BASE_OPTIONS else {})


def scopes_of(step: str) -> list[str]:
    """Whose options a step takes, each overriding those before."""
    return [ALL, EVALUATION, step] if STEPS[step].is_evaluation else [ALL, step]


def check_keys(scope: str, keys: Iterable[str], where: str) -> None:
    """Refuse what no step in a scope has, and at the top what must be said of a single step.

    Raises:
        UserError: such a key.
    """
    known = {key for step in STEPS if scope in scopes_of(step) for key in options_of(step)}
    known |= {BASE, WORLD} if scope == ALL else set()
    for key in keys:
        if key not in known:
            raise UserError(f"{where}{unknown(key, known | set(STEPS) if scope == ALL else known)}")
        if scope == ALL and key in PER_METHOD:
            raise UserError(f"{where}{key} means another thing in each method; set it in the section of a step")
        if scope == ALL and key in FROM_THE_GRAPH:
            raise UserError(
                f"{where}{key} has no place here: the graph sets it; name {BASE}, or set it in a step's section"
            )


def unknown(key: str, known: Iterable[str], kind: str = "key") -> str:
    """What to say of a key, or something else, that is not known."""
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"unknown {kind} {key}; " + (f"did you mean {close[0]}?" if close else "--help lists the known ones")
