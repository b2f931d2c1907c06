"""The files that the commands left in a profile's folder, each read once."""

import json
from pathlib import Path

import yaml

from eval.analysis.comparisons import by_prompt
from eval.config import ReportConfig
from rlhf_trl.errors import UserError
from rlhf_trl.files import read_jsonl
from rlhf_trl.provenance import read_manifest, read_result

GREEDY = "greedy/"


class Results:
    """What is known of a profile's policies; what is not there is empty or None.

    Attributes:
        names: of the policies that are compared, the reference first.
        samples, scored, judge: the manifests of these stages.
        scores: rows of each file of `scores` by its name there ("ppo", "checkpoints/ppo-24", "best_of").
        policies, greedy: of these the policies', at temperature 1 and 0; `greedy` is empty unless all have some.
        base: rows of the untouched base model.
        verdicts: `by_prompt`; `greedy_verdicts` are those on greedy replies, by the policies' names.
        card, data: those of the reward model that scored, and of the data.
        runs, settings: manifest and `config.yaml` of each policy's run and, as "reward", of the reward model's.

    Raises:
        UserError: nothing was scored yet, with other models, or there is nothing to compare.
    """

    def __init__(self, config: ReportConfig) -> None:
        self.config, self.root, self.names = config, Path(config.output_dir), list(config.folders)
        if len(self.names) < 2:
            raise UserError("a report compares two policies or more; name them in policies")
        paths = sorted((self.root / "scores").rglob("*.jsonl"))
        files = {path.relative_to(self.root / "scores").with_suffix("").as_posix(): read_jsonl(path) for path in paths}
        self.scores = {name: rows for name, rows in files.items() if rows}
        for name in self.names:
            if name not in self.scores:
                raise UserError(f"{self.root / 'scores' / name}.jsonl is missing; run 'make score' first")
        self.policies = {name: self.scores[name] for name in self.names}
        cold = {name: self.scores.get(f"{GREEDY}{name}", []) for name in self.names}
        self.greedy = cold if all(cold.values()) else {}
        self.base = self.scores.get("base", [])

        self.samples, self.scored = (read_result(self.root / stage) for stage in ("samples", "scores"))
        if self.scored["options"]["reference"] != self.names[0]:
            raise UserError(f"the scores' reference is not {self.names[0]}; run 'make score' again")
        self.judge = read_manifest(self.root / "judge") or {}
        self.verdicts = by_prompt(read_jsonl(self.root / "judge" / "verdicts.jsonl") if self.judge else [])
        self.greedy_verdicts = {
            (a.removeprefix(GREEDY), b.removeprefix(GREEDY)): prompts
            for (a, b), prompts in self.verdicts.items()
            if a.startswith(GREEDY)
        }

        self.card = _read(self.root / "reward-model" / "card.json")
        scorer = self.scored["made_of"]["reward_model"]["sha256"]
        if self.card and self.card["manifest"]["reward_model"]["sha256"] != scorer:
            self.card = None  # of another reward model
        self.data = _read(self.root / "data" / "data.json")
        self.folders = {name: Path(f) for name, f in ({"reward": config.reward_model} | config.folders).items()}
        manifests = {name: read_manifest(folder) for name, folder in self.folders.items()}
        self.runs = {name: manifest for name, manifest in manifests.items() if manifest}
        configs = {name: self.folders[name] / "config.yaml" for name in self.names}
        self.settings = {
            name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in configs.items() if path.exists()
        }

    @property
    def shown(self) -> dict[str, list[dict]]:
        """Rows of all that a report describes: the base model, if it was sampled, and the policies."""
        return ({"base": self.base} if self.base else {}) | self.policies

    @property
    def has_gold(self) -> bool:
        return self.policies[self.names[0]][0]["gold"] is not None


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
