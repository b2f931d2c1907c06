"""Finding out early whether something on the hub can be had."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from rlhf_trl.errors import UserError, check_folder


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
                f"{name} is no local folder and could not be had from the hub ({type(error).__name__}); "
                f"check the name and the network, or set {variable} to a local folder"
            ) from error


def check_source(name: str) -> None:
    """Fail early and in one line where a model folder or hub model cannot be had.

    Raises:
        UserError: no such folder, a folder without a model, or a hub model that cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise UserError(f"{name} holds no model (no config.json); name a model folder")
        return
    check_reachable(name, "model", "MODEL")
