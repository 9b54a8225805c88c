"""A base in a folder, for all tests of trainers that need one."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with its tokenizer."""
    from output_runs import save_base  # which imports TRL for ten seconds

    return save_base(tmp_path_factory.mktemp("base"))
