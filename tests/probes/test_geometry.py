"""Geometry of finished runs: files that say what the run's own weights say."""

import json
import shutil

import pytest
from tiny_runs import ONE, TWO, UNROUTED, tiny_run

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, MachineError
from gradroute.evaluate.geometry import adapter_factors, update_cosines
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.probes.geometry import geometry_runs
from gradroute.runs.folder import RunFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    tiny_run(root, "routed", *TWO)
    tiny_run(root, "unrouted", *UNROUTED)
    tiny_run(root, "filter", *ONE)
    return root


@pytest.fixture
def run_of(trained, tmp_path):
    return lambda name: RunFolder(shutil.copytree(trained / name, tmp_path / name))


def test_geometry_is_that_of_the_trained_model(run_of, tmp_path, capsys):
    routed, unrouted, single = run_of("routed"), run_of("unrouted"), run_of("filter")
    geometry_runs([routed, unrouted, single], tmp_path / "out")
    out, err = capsys.readouterr()
    assert "filter: left out" in err and not single.geometry.exists()
    assert (tmp_path / "out" / "geometry.png").read_bytes().startswith(b"\x89PNG")
    for folder in (routed, unrouted):
        document = json.loads(folder.geometry.read_text(), parse_constant=pytest.fail)
        assert document["adapters"] == ["good", "bad"] and document["step"] == 3
        config = load_config(folder.config)
        _, model = restore(config, finished_checkpoint(folder, config.train.max_steps))
        wanted = update_cosines(adapter_factors(model, "good"), adapter_factors(model, "bad"))
        found = {name: module["cosine"] for name, module in document["modules"].items()}
        assert found == pytest.approx(wanted, rel=1e-9)
        places = {(module["layer"], module["module"]) for module in document["modules"].values()}
        assert len(places) == 14 and {layer for layer, _ in places} == {2, 3}
        for module in document["modules"].values():
            assert len(module["angles_A"]) == len(module["angles_B"]) == 2
        assert document["random"]["draws"] == 20
        assert f"{document['summary']['mean_cos2_B']:.3f} (" in out
    assert "name one too" not in out
    geometry_runs([routed], tmp_path / "out")
    assert "name one too (routing=none" in capsys.readouterr().out


def test_geometry_needs_two_adapters_and_a_checkpoint(run_of, tmp_path):
    with pytest.raises(ConfigError, match="filter: there is no run with two adapters"):
        geometry_runs([run_of("filter")], tmp_path)
    broken = run_of("routed")
    shutil.rmtree(broken.checkpoints)
    with pytest.raises(MachineError, match="routed has 0 of 3 steps"):
        geometry_runs([broken], tmp_path)
