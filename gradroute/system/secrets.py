"""The token for gated models, and texts without secrets.

A token comes from here, is passed on as an argument, and goes nowhere else: it is never put into
the environment, printed or written.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

SHORTEST_SECRET = 8
"""A shorter value of a variable is as likely a word of the text that it would be taken out of."""

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_FULL_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
# The part of an address before its host; a password with a slash in it is none, but is pasted.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/\s]{1,500}|[^/:@\s]{1,200}:[^\s@]{1,200})@")
# TOKEN and KEY end the word: TOKENIZERS_PARALLELISM and KEYBOARD name no secrets.
_SECRET_NAME = re.compile(
    r"(SECRET|PASSWORD|PASSWD|CREDENTIAL|(TOKEN|KEY)S?(?![A-Z]))", re.IGNORECASE
)


def hub_token() -> str | None:
    """The Hugging Face token, or None: HF_TOKEN, else that of `./.env`, else the hub login's.

    Of `.env` nothing but HF_TOKEN is read, without expanding variables in it.
    """
    if token := os.environ.get("HF_TOKEN", "").strip() or _token_of_file():
        return token
    from huggingface_hub import get_token

    return get_token()


def _token_of_file() -> str:
    """HF_TOKEN of `./.env`, or nothing."""
    path = Path(".env")
    try:
        if not path.is_file() or path.stat().st_size > 2**20:
            return ""
        from dotenv.parser import parse_stream

        with path.open(encoding="utf-8") as file:
            tokens = [one.value or "" for one in parse_stream(file) if one.key == "HF_TOKEN"]
    except (OSError, UnicodeDecodeError):
        return ""  # not a file of settings that we may read; then it gives no token
    return tokens[-1].strip() if tokens else ""


def token_places() -> str:
    """Where `hub_token` looks, for messages."""
    return "HF_TOKEN in the environment, HF_TOKEN in ./.env, and the login of `hf auth login`"


def redact(text: str) -> str:
    """The text without secrets and without the name of the home folder.

    Secrets are tokens of the hub, what stands before the host of an address, the HF_TOKEN of
    `./.env`, and the values of environment variables that are named like one.
    """
    return _redact(text, _secrets())


def redact_tree(value: Any) -> Any:
    """Mappings, lists and texts with every text redacted; what is written to be shared."""
    return _redact(value, _secrets())


def secret_in(text: str) -> str:
    """What a text holds that belongs in no file: a word for it, or nothing."""
    if _FULL_TOKEN.search(text):
        return "a token of the hub"
    return "an address with a user or password" if _CREDENTIALS.search(text) else ""


def under_home(path: str) -> str:
    """A path as it may stand in a file that is shared: `~` for the home folder."""
    home = _home()
    return f"~{path[len(home) :]}" if home and path.startswith(f"{home}{os.sep}") else path


def _home() -> str:
    """The home folder, or nothing where the user has none."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return ""
    return home if len(home) > 1 else ""


def _secrets() -> list[str]:
    """The secrets that this process knows, looked up each time and kept nowhere; longest first."""
    values = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    found = {value.strip() for value in (*values, _token_of_file())}
    return sorted((one for one in found if len(one) >= SHORTEST_SECRET), key=len, reverse=True)


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _redact(inner, secrets) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redact(inner, secrets) for inner in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, "[secret]")
    value = _CREDENTIALS.sub("[credentials]@", _TOKEN.sub("[token]", value))
    home = _home()
    return value.replace(home, "~") if home else value


def without_hub_code() -> None:
    """Let the package `kernels` count as not installed in this process.

    With it transformers and bitsandbytes fetch code from the hub and run it, bitsandbytes as soon
    as it is imported, which PEFT does. Both do without where it is missing; bitsandbytes logs so.
    """
    sys.modules.setdefault("kernels", None)  # pyright: ignore[reportArgumentType]
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
