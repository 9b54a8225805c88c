"""Planted secrets are in nothing that a verb leaves or says, and the search would find them."""

import base64
import random
import zlib
from pathlib import Path

import pytest

from torture.secrets import planted, search, trials


@pytest.mark.slow
def test_no_verb_leaves_or_says_a_secret(tmp_path: Path) -> None:
    outcome = trials(1, 100, tmp_path)
    assert outcome["failures"] == [] and outcome["hits"] == 0
    assert outcome["trials"] > 40 and outcome["files"] > 60
    assert outcome["planted_found"] >= outcome["secrets"] == 8


SECRET = "a secret of some length"


@pytest.mark.parametrize(
    "content",
    [
        SECRET.encode(),
        f"x{SECRET}y".encode("utf-16"),
        SECRET.encode("utf-16-be"),
        base64.b64encode(f"{SECRET}.".encode()),
        base64.b64encode(f"x{SECRET}...".encode()),
        base64.b64encode(f"xy{SECRET}".encode()),
        SECRET.encode().hex().encode(),
        b"%PDF-1.4\nstream\n" + zlib.compress(f"(x{SECRET})".encode()) + b"\nendstream",
    ],
)
def test_a_secret_is_found_however_it_is_written(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert search(tmp_path, {"it": SECRET}).hits == [("file", "it")]


def test_a_secret_in_the_name_of_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / f"{SECRET}.txt").write_text("x")
    (tmp_path / SECRET).mkdir()
    assert len(search(tmp_path, {"it": SECRET}).hits) == 2


def test_secrets_differ_from_seed_to_seed_and_from_each_other() -> None:
    one, other = (planted(random.Random(seed)) for seed in (0, 1))
    assert len({*one.values(), *other.values()}) == 16
    assert planted(random.Random(0)) == one
