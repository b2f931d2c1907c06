"""The graph of steps: runs what is asked for, and before it what that needs and is not there yet.

    make report PROFILE=gpt2
    python -m rlhf_trl.pipeline report --profile configs/gpt2.yaml --options "ppo=--kl_strength 0.1"

A step needs the steps in whose folders its inputs lie. A finished one is left alone; it is made again when one of its
inputs is another by now, and refused when it is asked for with other options than it was made with. Targets are `all`
(the report), `status`, which tells how things stand, and the steps:

    demo-data    the demo's data and untrained model
    data         an analysis of the data
    sft, reward, ppo, grpo, dpo
    eval-reward  the card of the reward model
    samples, score, judge, report
"""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf_trl.cli import cli, fill, read_task
from rlhf_trl.config import RECIPES
from rlhf_trl.errors import UserError
from rlhf_trl.profiles import (
    ALL,
    BASE,
    BASE_OPTIONS,
    EVALUATION,
    check_keys,
    read_profile,
    scopes_of,
    sections,
    unknown,
)
from rlhf_trl.provenance import MISSING, STOPPED, UNFINISHED, Task
from rlhf_trl.steps import STEPS, options_of

SHARDING = ("zero", "fsdp")  # launchers with which PPO cannot train, and the evaluation has no use for shards
LAUNCHERS = Path(__file__).parent.parent / "configs/accelerate"


@dataclass
class GraphConfig:
    """Which profile, and what is said beside it."""

    profile: str = field(metadata={"help": "The profile's file, or its name in configs."})
    runs: str = field(default="runs", metadata={"help": "Folder for the results of all profiles."})
    options: list[str] | None = field(
        default=None,
        metadata={
            "help": "Options for a step, as 'ppo=--kl_strength 0.1'; eval=... for all of the evaluation, all=... for "
            "all steps that have them; base_model is one, too."
        },
    )
    launch: str | None = field(
        default=None,
        metadata={
            "help": "A name in configs/accelerate, and options of accelerate launch, as 'ddp --num_processes 4'."
        },
    )
    fresh: bool = field(default=False, metadata={"help": "Make the steps that are named anew; all names every step."})

    def __post_init__(self) -> None:
        if Path(self.profile).suffix != ".yaml":
            self.profile = f"configs/{self.profile}.yaml"
        if not Path(self.profile).exists():
            there = ", ".join(sorted(path.stem for path in Path("configs").glob("*.yaml")))
            raise UserError(f"there is no profile {self.profile}; choose one of {there}, or name a file")
        launcher = (self.launch or "").split()[:1]
        if launcher and not (LAUNCHERS / f"{launcher[0]}.yaml").exists():
            there = ", ".join(sorted(path.stem for path in LAUNCHERS.glob("*.yaml")))
            raise UserError(f"there is no launcher {launcher[0]}; choose one of {there}")


class Graph:
    """The steps of a profile with their command lines.

    Attributes:
        folder: the profile's, which holds all results.

    Raises:
        UserError: options for what is no step, or that no step has.
    """

    def __init__(self, config: GraphConfig) -> None:
        self.config = config
        self.folder = Path(config.runs) / Path(config.profile).stem
        self.profile = read_profile(config.profile)
        if not sections(self.profile):
            raise UserError(f"{config.profile} is no profile: it has no section that is named after a step")
        self.tasks: dict[str, Task] = {}
        self.given: dict[str, list[tuple[str, list[str]]]] = {}
        for entry in config.options or ():
            scope, _, words = entry.partition("=")
            if scope not in (*STEPS, EVALUATION, ALL):
                raise UserError(f"options: {unknown(scope, [*STEPS, EVALUATION, ALL], 'step')}")
            try:
                self.given.setdefault(scope, []).extend(_by_option(shlex.split(words)))
            except ValueError as error:
                raise UserError(f"the options of {scope} cannot be read ({error}); close the quotation") from error
        for scope, options in self.given.items():
            names = [name for name, _ in options]
            for name, instead in {"fresh": "FRESH=1", "output_dir": "RUNS"}.items():
                if name in names:
                    raise UserError(f"options of {scope}: {name} has no place here; set {instead}")
            check_keys(scope, names, f"options of {scope}: ")

    def arguments(self, step: str) -> list[str]:
        """The options that a step is started with."""
        folder = self.folder / step if step in RECIPES else self.folder
        words = ["--config", self.config.profile, "--output_dir", str(folder)]
        for scope in scopes_of(step):
            for name, option in self.given.get(scope, ()):
                if name == BASE:
                    if step in BASE_OPTIONS:
                        words += [option[0].replace(BASE, BASE_OPTIONS[step]), *option[1:]]
                elif name in options_of(step):
                    words += option
        return words

    def task(self, step: str, fresh: bool = False) -> Task:
        """What a step is asked for now."""
        if step not in self.tasks:
            self.tasks[step] = read_task(step, self.arguments(step))[0]
        return replace(self.tasks[step].now(), fresh=fresh)

    def reason(self, step: str, fresh: bool) -> str | None:
        """Why a step must run; None if it need not.

        Raises:
            UserError: it is finished, and asked for with other options.
        """
        refusal, stale = self.task(step, fresh).differences()
        if refusal:
            raise UserError(f"{step}: {refusal}")
        return stale

    def needs(self, step: str) -> list[str]:
        """The steps in whose folders the inputs of a step lie."""
        paths = [Path(entry["path"]) for entry in self.task(step).made_of.values()]
        return [name for name in STEPS if any(self.folder / folder in paths for folder in STEPS[name].folders)]

    def order(self, targets: list[str]) -> list[str]:
        """The steps that are to be looked at for these targets, in an order in which they can run."""
        found: set[str] = set()
        todo = list(targets)
        while todo:
            step = todo.pop()
            todo += [] if step in found else self.needs(step)
            found.add(step)
        return [step for step in STEPS if step in found]

    def command(self, step: str, *more: str) -> list[str]:
        """What runs a step."""
        return [*self._launch(step), *STEPS[step].command, *self.arguments(step), *more]

    def _launch(self, step: str) -> list[str]:
        name, *options = (self.config.launch or "").split() or [None]
        is_evaluation = STEPS[step].is_evaluation
        if name is None or step == "demo-data" or (is_evaluation and not STEPS[step].is_shared):
            return [sys.executable]
        if is_evaluation and name.startswith(SHARDING):
            name = "ddp"
        accelerate = str(Path(sys.executable).with_name("accelerate"))
        return [accelerate, "launch", "--config_file", f"configs/accelerate/{name}.yaml", *options]


def run(graph: Graph, targets: list[str]) -> None:
    """Run what is not finished of these steps and of what they need; `all` names every step.

    Raises:
        UserError: a finished one is asked for with other options; nothing has run then. Or a judge would have to be
            paid again.
    """
    order = graph.order(["report" if target == ALL else target for target in targets])
    anew = (order if ALL in targets else targets) if graph.config.fresh else []
    for step in order:
        if graph.reason(step, step in anew) and step == "ppo" and (graph.config.launch or "").startswith(SHARDING):
            raise UserError("PPO works with LAUNCH=ddp, not with shards; name other steps, then go on without LAUNCH")
    ran = False
    for number, step in enumerate(order, 1):
        reason, named = graph.reason(step, step in anew), step in (*targets, *anew)
        if reason == UNFINISHED and not named:
            print(f"{step} is unfinished; 'make {step}' goes on with it")
            continue
        if reason is None:
            continue
        if not named and (graph.task(step).folder / "transcript.jsonl").exists():  # of a judge that may cost money
            _call(graph.command(step, "--dry_run", "--fresh"))
            raise UserError(f"the verdicts are stale ({reason}); 'make {step}' asks anew, then this command goes on")
        ran = True
        print(f"[{number}/{len(order)}] {step} ({reason})", flush=True)
        _call(graph.command(step, *["--fresh"] * (step in anew)))
    if not ran:
        print(f"nothing to do; the result is in {graph.task(order[-1]).folder}")


def status(graph: Graph) -> Iterator[str]:
    """A line for each step: whether it is done, and if not, why."""
    for step in graph.order(["report"]):
        refusal, stale = graph.task(step).differences()
        state = "done" if stale is None else stale if stale in (MISSING, UNFINISHED, STOPPED) else f"stale: {stale}"
        yield f"{step:12} {refusal or state}"


def _by_option(words: list[str]) -> list[tuple[str, list[str]]]:
    """Words of a command line, option by option: its name, and the words that say it."""
    options: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            options.append((word[2:].partition("=")[0].replace("-", "_"), [word]))
        elif options:
            options[-1][1].append(word)
        else:
            raise UserError(f"options begin with --, and {word} does not")
    return options


def _call(command: list[str]) -> None:
    """Run a step; its own exit code ends all where it fails."""
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)


@cli
def main() -> None:
    targets = []
    while len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        targets.append(sys.argv.pop(1))
    (config,), _ = fill(__doc__, (GraphConfig,), sys.argv[1:])
    graph = Graph(config)
    for target in targets:
        if target not in (*STEPS, ALL, "status"):
            raise UserError(unknown(target, [*STEPS, ALL, "status"], "target"))
    if "status" in targets:
        print(*status(graph), sep="\n")
    else:
        run(graph, targets or [ALL])


if __name__ == "__main__":
    main()
