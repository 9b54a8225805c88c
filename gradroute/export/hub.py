"""A finished export to the hub: into a new repository, after its proof."""

import os
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gradroute.errors import ConfigError, GradrouteError, MachineError
from gradroute.system.secrets import hub_token, redact, token_places

_OFFLINE = ("1", "on", "yes", "true")
_MADE_BY_HUB = {".gitattributes"}


def check_push(repo: str) -> str:
    """See before anything is built that it can be pushed, and return the token.

    Raises:
        ConfigError: `repo` is no `owner/name`.
        MachineError: There is no token, or the hub is switched off.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push {repo}: not the name of a repository ({error}).") from error
    if repo.count("/") != 1:
        raise ConfigError(f"--push {repo}: an owner and a name are needed, as in me/{repo}.")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _OFFLINE:
        raise MachineError(
            f"--push {repo}: HF_HUB_OFFLINE is set, so nothing can be sent. Unset it, or export "
            "without --push."
        )
    token = hub_token()
    if not token:
        raise MachineError(
            f"--push {repo}: no token was found in {token_places()}. Give one that may write."
        )
    return token


def push(folder: Path, repo: str, *, public: bool, token: str) -> None:
    """Upload a folder as a new model repository, private unless asked otherwise.

    A repository that is there is refused: files in it that are not of this folder would stand
    beside a proof that says nothing about them.

    Raises:
        MachineError: The hub refuses, or holds other files than the folder afterwards.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repo, repo_type="model", private=not public, exist_ok=False)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="model",
            commit_message="Export of gradroute, with its proof",
        )
        held = set(api.list_repo_files(repo, repo_type="model")) - _MADE_BY_HUB
        if held != (own := {path.name for path in folder.iterdir()}):
            raise MachineError(
                f"{repo} holds other files than {folder}: {', '.join(sorted(held ^ own))[:200]}. "
                "Delete the repository and push again."
            )
    except GradrouteError:
        raise
    except Exception as error:  # of the hub, the network or the disk
        first = redact(" ".join(str(error).split()))[:200]
        raise MachineError(
            f"{folder} is exported, but could not be pushed to {repo} ({first}). Name a repository "
            f"that does not exist yet, or upload the folder yourself: hf upload {repo} {folder}."
        ) from error
