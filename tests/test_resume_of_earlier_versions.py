"""Runs that an earlier version began go on, under their former names too."""

import shutil

import pytest
from resumed_runs import cut, files, go, sessions

from gradroute.errors import ConfigError
from gradroute.runs.folder import RunFolder
from gradroute.runs.resume import _SAME_BASES  # pyright: ignore[reportPrivateUsage]
from gradroute.system.files import read_json, write_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that was never interrupted."""
    return go(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def begun(whole, tmp_path):
    """The same run with one step still to do."""
    shutil.copytree(whole.path, tmp_path / "runs" / "x")
    return cut(RunFolder(tmp_path / "runs" / "x"))


def test_a_run_begun_before_the_embedded_tokenizer_named_its_beginning_goes_on(whole, begun):
    manifest = read_json(begun.manifest)
    [(earlier, now)] = _SAME_BASES.items()
    assert manifest["base"] == now, "the embedded model has changed: so must the table"
    write_json(begun.manifest, {**manifest, "base": earlier})
    go(begun.path.parent)
    assert files(max(begun.checkpoints.iterdir())) == files(max(whole.checkpoints.iterdir()))


def test_without_a_manifest_nobody_knows_what_a_run_stands_on(begun):
    before = begun.manifest.read_bytes()
    begun.manifest.unlink()
    with pytest.raises(ConfigError, match=r"identity\.base +unknown "):
        go(begun.path.parent)
    go(begun.path.parent, allow=["identity"])
    assert begun.manifest.read_bytes() == before


def test_a_run_folder_of_before_sessions_were_kept_still_goes_on(whole, begun):
    begun.sessions.unlink()
    manifest = read_json(begun.manifest)
    write_json(begun.manifest, {k: v for k, v in manifest.items() if k != "gradroute"})
    go(begun.path.parent)
    assert [row["step"] for row in sessions(begun)] == [2]
    assert begun.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_run_that_an_earlier_version_began_goes_on_under_the_former_names(begun, capsys):
    text = begun.config.read_text()
    for key in ("quantize", "relabel", "drop"):
        assert f"{key}: none" in text
        text = text.replace(f"{key}: none", f"{key}: nothing")
    begun.config.write_text(text)
    manifest = read_json(begun.manifest)
    former = {key.replace(" labeled ", " labelled "): n for key, n in manifest["examples"].items()}
    assert former.keys() != manifest["examples"].keys()
    labels = dict(manifest["labels"])
    labels["labelled_bad"] = labels.pop("labeled_bad")
    write_json(begun.manifest, {**manifest, "examples": former, "labels": labels, "data": "other"})

    with pytest.raises(ConfigError, match=r"--override identity\.data"):
        go(begun.path.parent)
    go(begun.path.parent, allow=["ground.data"])

    (last,) = sessions(begun)[1:]
    assert list(last["changed"]) == ["identity.data"] == last["overridden"]
    now = read_json(begun.manifest)
    assert (now["examples"], now["labels"]) == (manifest["examples"], manifest["labels"])
    assert "nothing" not in begun.config.read_text() + capsys.readouterr().err
