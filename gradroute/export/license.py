"""The license of a base model, read from its own card."""

import re
from pathlib import Path

from huggingface_hub import hf_hub_download

from gradroute.system.secrets import hub_token

UNKNOWN = "unknown"

_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9._+-]{0,60})[\"']?[ \t]*$", re.M)
_MOST = 1 << 20


def base_license(source: str, revision: str | None) -> str:
    """The license that a base model's README names, as the hub writes it, or `UNKNOWN`.

    Args:
        source: A local folder, or a name on the hub, whose README is fetched where it can be.
        revision: Commit of a hub model.
    """
    folder = Path(source)
    path = folder / "README.md"
    if not folder.is_dir():
        try:
            path = Path(hf_hub_download(source, "README.md", revision=revision, token=hub_token()))
        except Exception:  # gated, offline, no README: then it is not known
            return UNKNOWN
    try:
        with path.open("rb") as file:
            text = file.read(_MOST).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return UNKNOWN
    front = _FRONT.match(text)
    found = _LICENSE.search(front[1]) if front else None
    return found[1].lower() if found else UNKNOWN
