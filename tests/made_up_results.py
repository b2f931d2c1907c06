"""A profile with made-up results of all its steps: only their manifests are real, by which alone the graph decides."""

import json
import shutil

import yaml

from rlhf_trl import pipeline
from rlhf_trl.errors import UserError
from rlhf_trl.pipeline import Graph, GraphConfig
from rlhf_trl.provenance import MANIFEST
from rlhf_trl.steps import STEPS

PROFILE = {
    "max_rows": 50,
    "kl_strength": 0.1,
    **{"sft": {"max_steps": 3}, "reward": {}, "ppo": {}, "grpo": {}, "dpo": {}},
    "eval": {"prompts": 8, "judge_model": "m", "base_url": "http://localhost:1/v1"},
}
RUNS = ["sft", "reward", "ppo", "grpo", "dpo"]


class Results:
    """A profile with made-up results of all its steps, and what is asked of it."""

    def __init__(self, folder, world, monkeypatch):
        self.folder, self.ran, self.number = folder, [], 0
        shutil.copytree(world / "data", folder / "data")
        shutil.copytree(world / "model", folder / "base")
        (folder / "template.txt").write_text("{{ dialogue }}{{ first }}{{ second }}")
        (folder / "probes.yaml").write_text("a: [{prompt: b}]")
        self.write_profile({})
        monkeypatch.setattr(pipeline, "_call", self.make)
        self.ask("report")
        self.ran.clear()

    def write_profile(self, changes):
        content = PROFILE | {"base_model": str(self.folder / "base"), "dataset": str(self.folder / "data")}
        files = {"judge_template": "template.txt", "probes": "probes.yaml"}
        content["eval"] = content["eval"] | {option: str(self.folder / name) for option, name in files.items()}
        for scope, values in changes.items():
            content[scope] = content.get(scope, {}) | values if isinstance(values, dict) else values
        (self.folder / "p.yaml").write_text(yaml.safe_dump(content))

    def graph(self, *options, fresh=False):
        profile, runs = str(self.folder / "p.yaml"), str(self.folder / "runs")
        return Graph(GraphConfig(profile=profile, runs=runs, options=list(options), fresh=fresh))

    def make(self, command):
        """A result of the step that a command would run, with a content that no other has."""
        step = next(name for name, row in STEPS.items() if [*row.command] == command[1 : 1 + len(row.command)])
        if "--dry_run" in command:
            self.ran.append("dry run")
            return
        task = pipeline.read_task(step, command[1 + len(STEPS[step].command) :])[0]
        task.is_finished()  # as the step itself looks
        self.number += 1
        task.folder.mkdir(parents=True, exist_ok=True)
        (task.folder / MANIFEST).write_text(json.dumps(task.manifest(f"content {self.number}")))
        if step == "judge":
            (task.folder / "transcript.jsonl").touch()
        self.ran.append(step)

    def ask(self, target, *options, fresh=False, graph=None):
        """What runs for a target, or the refusal."""
        self.ran.clear()
        try:
            pipeline.run(graph or self.graph(*options, fresh=fresh), target.split())
        except UserError as error:
            return str(error)
        return list(self.ran)


def moved(results):
    shutil.copytree(results.folder / "runs", results.folder / "elsewhere")
    shutil.rmtree(results.folder / "runs")
    (results.folder / "elsewhere").rename(results.folder / "runs")
