"""Finding out early whether something on the hub, or in a folder, can be had; and what an adapter stands on."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME as ADAPTER
from transformers.utils.peft_utils import find_adapter_config_file

from rlhf_trl.errors import UserError, check_folder
from rlhf_trl.files import content_hash, read_json, weights_hash
from rlhf_trl.provenance import found, read_manifest


def check_reachable(name: str, repo_type: str, variable: str) -> None:
    """Fail within seconds where `name` (no local folder) is neither in the cache nor on a hub in reach.

    The hub client itself would try again for most of a minute. `variable` is named in the message.

    Raises:
        UserError: what looks like a path does not exist, or the hub does not give the repository.
    """
    check_folder(name, repo_type)
    try:
        snapshot_download(name, repo_type=repo_type, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        try:
            HfApi().repo_info(name, repo_type=repo_type, timeout=5)
        except Exception as error:  # the client raises many unrelated types
            raise UserError(
                f"{name} is no local folder or file and could not be had from the hub ({type(error).__name__}); "
                f"check the name and the network, or set {variable} to a local folder"
            ) from error


def check_source(name: str, variable: str = "MODEL") -> None:
    """Fail early and in one line where a model folder, hub model or adapter cannot be had.

    Raises:
        UserError: no such folder, a folder without a model, a hub model that cannot be reached, or an adapter whose
            base cannot be had.
    """
    path = Path(name)
    if not path.is_dir():
        check_reachable(name, "model", variable)
    elif not ((path / "config.json").exists() or is_adapter(name)):
        raise UserError(f"{name} holds no model (no config.json); name a model folder")
    for base, _ in lineage(name)[1:2]:
        check_source(base, variable)


def check_weights(name: str) -> None:
    """Find out, without reading them, whether a folder's weights are there and whole, and those under an adapter.

    Raises:
        UserError: there are none, or a file is missing, damaged or cut off.
    """
    for folder in (Path(source) for source, _ in lineage(name) if Path(source).is_dir()):
        files = list(folder.glob("*.safetensors"))
        if not files and not list(folder.glob("*model*.bin")):
            raise UserError(f"{folder} holds no weights (no .safetensors file); fetch it again, or name another model")
        for index in folder.glob("*.safetensors.index.json"):
            files += [folder / file for file in read_json(index).get("weight_map", {}).values()]
        for path in sorted(set(files)):
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} cannot be read ({error}); it is damaged or cut off, fetch it again") from error


def is_adapter(name: str) -> bool:
    """Whether a folder or hub model is a PEFT adapter."""
    return find_adapter_config_file(name) is not None


def lineage(name: str, revision: str = "main") -> list[tuple[str, str]]:
    """A model with its revision, and if it is an adapter, what it was trained on, down to a model that is none.

    A base folder that has moved together with its adapter is found: a folder of the same name beside the adapter's or
    above. It must hold the weights that the adapter's run recorded, if there is a record.

    Raises:
        UserError: a base has moved to where it is not found, or its weights have changed.
    """
    file = find_adapter_config_file(name, revision=revision)
    if file is None:
        return [(name, revision)]
    config = read_json(Path(file))
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"the adapter {name} does not say which model it belongs to; name that in its {ADAPTER}")
    base = _moved_base(name, base) or base
    try:
        check_folder(base, "base model")
    except UserError as error:
        raise UserError(
            f"the adapter {name} was trained on {base}, which is not there any more, nor beside it; put that model "
            f"beside the adapter's folder, or name it as base_model_name_or_path in {ADAPTER}"
        ) from error
    return [(name, revision), *lineage(base, config.get("revision") or "main")]


def _moved_base(name: str, base: str) -> str | None:
    """Where the base of an adapter lies that moved together with it; None if it has not."""
    manifest = read_manifest(name) or {"made_of": {}}
    model = manifest["made_of"].get("model", {"sha256": None})
    if model["sha256"]:
        beside = found(model["path"], manifest, name)
        if (read_manifest(beside) or {}).get("sha256") == model["sha256"]:
            return str(beside)
    if Path(base).is_dir() or not Path(name).is_dir():
        return None
    for parent in list(Path(name).absolute().parents)[:3]:
        folder = parent / Path(base).name
        is_model = (folder / "config.json").exists() or (folder / ADAPTER).exists()
        weights = weights_hash if read_manifest(folder) else content_hash
        if is_model and model["sha256"] in (None, weights(folder)):
            return str(folder)
    return None
