"""What every result was made of, and whether that is what is asked for now.

A result's `manifest.json` holds the options that differ from their defaults, and a hash of each input: data, models and
the results of other steps. So a result is made again or refused by content, and two that do not belong together are
never read together. A result is trusted by its manifest, outside files are hashed, a hub name is its cached commit.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE

from rlhf_trl import kl
from rlhf_trl.config import RECIPES
from rlhf_trl.errors import UserError
from rlhf_trl.files import content_hash, files_hash, read_json, replaced, write_json
from rlhf_trl.steps import STEPS

MANIFEST = "manifest.json"
STARTED = "started.json"  # in the staging folder of a run: the same, of what it began with
# Reasons to make a result: there is none; it can be gone on with; so can a run that was stopped on its way to it
MISSING, UNFINISHED, STOPPED = "missing", "unfinished", "stopped"
LAYOUT = 2  # of manifests; one of ours without the number is older
OURS = {"layout", "recipe", "settings", "reference", "judge"}  # one of these is in a manifest of ours of any layout
# Options that name an input, and what the input is called; of `policies` each has its own name
INPUTS = {
    **{"dataset": "dataset", "model_name_or_path": "model", "reward_model_path": "reward_model"},
    **{"reward_model": "reward_model", "base": "base", "tokenizer": "tokenizer", "probes": "probes"},
    **{"chat_template_path": "chat_template", "judge_template": "judge_template"},
}
PLACES = {*INPUTS, "policies", "output_dir"}  # options that content stands for
# Options that change no result, by the first letters of their names: a finished or stopped run may be asked for others
NO_MATTER = (
    *("log", "save_", "eval_", "do_eval", "per_device_eval", "report_to", "project", "trackio_", "disable_tqdm"),
    *("run_name", "trust_remote_code", "gradient_checkpointing", "activation_", "dataloader_num_workers"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("concurrency", "retries", "timeout", "budget_", "usd_per_", "dry_run"),
)


@dataclass
class Task:
    """A step as it is asked for now.

    Attributes:
        folder: where its result goes.
        options: those that differ from their `defaults`, but for the ones that name an input.
        made_of: path and hash of each input by its name; a hash of None means that it is not there.
        fresh: make it, whatever was made before.
    """

    step: str
    folder: Path
    options: dict[str, Any]
    defaults: dict[str, Any]
    made_of: dict[str, dict[str, str | None]]
    fresh: bool = False

    @classmethod
    def of(
        cls, step: str, values: dict[str, Any], defaults: dict[str, Any], reads: Iterable[str] = (), fresh: bool = False
    ) -> "Task":
        """The task of these options, which reads these results besides those that the options name."""
        place, is_run = Path(values["output_dir"]), step in RECIPES
        root = place.parent if is_run else place
        paths = {role: values[option] for option, role in INPUTS.items() if values.get(option)}
        paths |= {name: str(root / name) for name in reads}
        implied = set(kl.COEFFICIENTS.values()) if values.get("kl_strength") is not None else {"kl_strength"}
        chosen = {
            name: value
            for name, value in values.items()
            if name not in PLACES | implied and value != defaults.get(name)
        }
        if "policies" in values:
            folders = policy_folders(values["policies"], root)
            if taken := folders.keys() & {*INPUTS.values(), *reads}:
                raise UserError(f"a policy cannot be called {min(taken)}, as something else is; write NAME=FOLDER")
            paths |= folders
            chosen["reference"] = next(iter(folders))
        return cls(
            step,
            place if is_run else root / STEPS[step].folders[0],
            json.loads(json.dumps(chosen, default=str)),
            json.loads(json.dumps(defaults, default=str)),
            {role: {"path": path} for role, path in paths.items()},
            fresh,
        ).now()

    def is_finished(self) -> bool:
        """Whether the result is there and what is asked for; False where it must be made, or made again.

        Raises:
            UserError: it was made with other options or outside files, or its inputs do not belong together.
        """
        refusal, stale = self.differences()
        if refusal:
            raise UserError(refusal)
        self.check_inputs()
        return not stale

    def check_inputs(self) -> None:
        """Refuse inputs of which one was made from another thing than the others were, or than is asked for.

        Raises:
            UserError: such inputs.
        """
        known = {role: (entry["sha256"], self.step) for role, entry in self.made_of.items()}
        for name, source in self.made_of.items():
            check_belongs(source["path"])
            manifest = read_manifest(source["path"])
            if manifest is None or not STEPS[manifest["step"]].is_evaluation:
                continue  # a model may have learned from other data, and from another model
            for role, entry in manifest["made_of"].items():
                sha256, other = known.setdefault(role, (entry["sha256"], name))
                if sha256 != entry["sha256"]:
                    raise UserError(
                        f"{name} and {other} are of another {role} each, so they do not belong together; make one of "
                        "them anew first"
                    )

    def now(self) -> "Task":
        """The same task, of what its inputs are by now."""
        sources = {role: entry | {"sha256": identity(role, entry["path"])} for role, entry in self.made_of.items()}
        return replace(self, made_of=sources)

    def sources(self) -> dict[str, dict[str, str | None]]:
        """`made_of`, with the commits of what has been fetched meanwhile."""
        return {
            role: entry if Path(entry["path"]).exists() else entry | {"sha256": identity(role, entry["path"])}
            for role, entry in self.made_of.items()
        }

    def differences(self) -> tuple[str | None, str | None]:
        """Why the result that is there is refused, and why it must be made (again); None where there is no reason."""
        if self.fresh:
            return None, "asked for anew"
        started = self.folder.with_name(self.folder.name + ".partial") / STARTED
        if started.exists() and self._change(read_json(started)) == (None, None):
            return None, STOPPED
        try:
            before = read_manifest(self.folder)
        except UserError as error:
            return str(error), None
        if before is None or not all((self.folder.parent / name).exists() for name in STEPS[self.step].folders[1:]):
            return None, MISSING
        if before["sha256"] is None:
            return None, UNFINISHED
        refusal, stale = self._change(before)
        return refusal, stale or (UNFINISHED if before.get("unfinished") else None)

    def changed_options(self, before: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """The options that matter and are others by now: name, what it was, what it is."""
        options = before.get("options", {})
        for name in sorted(options.keys() | self.options.keys(), key=lambda name: (name != "judge", name)):
            was, now = (values.get(name, self.defaults.get(name)) for values in (options, self.options))
            if was != now and not name.startswith(NO_MATTER):
                yield name, was, now

    def _change(self, before: dict[str, Any]) -> tuple[str | None, str | None]:
        """The first thing that is refused of what was asked for before, and the first input that is another by now."""
        anew = f"set it back, or RUNS to another folder, or 'make {self.step} FRESH=1' (by hand: --fresh)"
        for name, was, now in self.changed_options(before):
            return f"{self.folder} was made with {name}: {was}, and now it is {now}; {anew}", None
        made_of = before.get("made_of", {})
        stale, nothing = None, {"path": None, "sha256": None}
        for role in sorted(made_of.keys() | self.made_of.keys()):
            was, now = (sources.get(role, nothing) for sources in (made_of, self.made_of))
            if was["sha256"] == now["sha256"] and (now["sha256"] or was["path"] == now["path"]):
                continue  # the same content, wherever it lies
            place, home = (
                (now["path"], self.folder) if now["path"] else (was["path"], before.get("folder", self.folder))
            )
            same = was["path"] is None or now["path"] is None or Path(was["path"]).name == Path(now["path"]).name
            if same and Path(place).parent == Path(home).parent:
                stale = stale or f"{role} is another"
            elif was["path"] == now["path"]:
                what = "is not there" if now["sha256"] is None else "has changed since"
                return f"{self.folder} was made of {role} {was['path']}, which {what}; {anew}", None
            else:
                return f"{self.folder} was made of {role}: {was['path']}, and now it is {now['path']}; {anew}", None
        return None, stale

    @contextmanager
    def written(self, **more: Any) -> Iterator[Path]:
        """A folder to write the result to. It gets its manifest, and takes the place of an older one, when all is
        written."""
        with replaced(self.folder) as staging:
            yield staging
            write_json(staging / MANIFEST, self.manifest(files_hash(staging), **more))

    def manifest(self, sha256: str | None, **more: Any) -> dict[str, Any]:
        """The manifest of the result, whose content has this hash; None if it has none yet."""
        from rlhf_trl.measure import machine, versions

        return {
            "step": self.step,
            "layout": LAYOUT,
            "folder": str(self.folder),
            "sha256": sha256,
            "options": self.options,
            "made_of": self.sources(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "machine": machine(),
            **more,
        }


def policy_folders(policies: list[str], root: Path) -> dict[str, str]:
    """Where each policy's model is, by name: NAME is a run folder in `root`, NAME=FOLDER any other."""
    entries = [entry.partition("=") for entry in policies]
    return {name: folder or str(root / name) for name, _, folder in entries}


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a result; None if there is none, or one that something else left.

    Raises:
        UserError: an older version left it, or it is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path)
    if not (isinstance(manifest, dict) and manifest.keys() & OURS):
        return None
    if manifest.get("layout") != LAYOUT:
        raise UserError(
            f"{folder} was made by an older version of rlhf-trl, which did not record what it was made of; "
            "make it anew with FRESH=1 (by hand: --fresh), or set RUNS to another folder"
        )
    return manifest


def read_result(folder: Path) -> dict[str, Any]:
    """The manifest of a result that must be there.

    Raises:
        UserError: it is not; names the step that makes it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        step = next(name for name, step in STEPS.items() if folder.name in step.folders)
        raise UserError(f"there is no result in {folder}; run 'make {step}' first")
    return manifest


def identity(role: str, path: str) -> str | None:
    """What an input is, wherever it lies: of a result its recorded hash, else a hash of its content, or the commit of a
    hub name in the cache; None if there is nothing, or a result of an older layout."""
    with suppress(UserError):
        if (manifest := read_manifest(path)) is not None:
            return manifest["sha256"]
        if Path(path).exists():
            return content_hash(Path(path), is_data=role == "dataset")
        kind = "datasets" if role == "dataset" else "models"
        commit = Path(HF_HUB_CACHE) / f"{kind}--{path.replace('/', '--')}" / "refs/main"
        return commit.read_text().strip() if commit.is_file() else None
    return None


def found(path: str, manifest: dict[str, Any], folder: str | Path) -> Path:
    """Where an input lies by now whose path stands in the manifest of a result in `folder`: with that, if both were in
    one profile's folder."""
    source, before = Path(path), Path(manifest["folder"]).parent
    moved = Path(folder).parent / source.relative_to(before) if before in source.parents else source
    return moved if moved.exists() else source


def check_belongs(folder: str | Path) -> None:
    """Refuse a result that was made from others than those which now lie where these lay, however far back.

    Raises:
        UserError: such a result.
    """
    manifest = read_manifest(folder)
    for role, entry in manifest["made_of"].items() if manifest else ():
        source = found(entry["path"], manifest, folder)
        parent = read_manifest(source)
        if parent is None:
            continue
        if parent["sha256"] != entry["sha256"]:
            raise UserError(
                f"{folder} was made from another {role} than the one in {source} now, so they do not belong together; "
                f"make {manifest['step']} anew first"
            )
        check_belongs(source)
