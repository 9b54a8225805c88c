import json
from pathlib import Path

import pytest
from report.fabricated import REFERENCE, collect, collect_seeds, with_scales

from gradroute.report.judge.comparison import Comparison, comparison_of
from gradroute.report.render.json_document import eval_multi
from gradroute.system.files import write_json

HALF = "0.1_0.5"


@pytest.fixture(scope="module")
def seeds() -> Comparison:
    return comparison_of(collect_seeds())


def test_the_document_has_every_number_of_a_run_at_its_place() -> None:
    document = eval_multi(comparison_of(collect()))
    cell = document["runs"][HALF]["bad_ablated"]
    assert cell["behavior_rate"].keys() == {"mean", "lower", "upper", "n"}
    assert cell["behavior_rate"]["n"] == 128
    assert cell["behavior_score"]["mean"] == pytest.approx(0.1)
    assert cell["prompts"]["prefix"]["behavior_rate"] == cell["behavior_rate"]
    for dataset in ("normal", "behavior"):
        assert cell["held_out_loss"][dataset].keys() == {"mean", "lower", "upper", "std", "n"}
    run = document["runs"][HALF]
    assert run["geometry"]["mean_absolute_cosine"] == pytest.approx(0.09, abs=0.01)
    assert run["config"]["data"]["labeled_fraction"] == 0.5
    assert run["provenance"] == {"torch": "2.13.0"}
    assert document["comparisons"][HALF]["controls"]["filter"] == "filter_0.5"
    assert len(document["verdicts"]) == 6


def test_the_document_is_strict_json_also_where_nothing_is_known(tmp_path: Path) -> None:
    runs = collect({HALF: REFERENCE[HALF]}, paired=False, sampled=False)
    write_json(tmp_path / "d.json", eval_multi(comparison_of(runs)))
    text = (tmp_path / "d.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert document["comparisons"][HALF]["gain_kept"]["lower"] is None
    assert document["runs"][HALF]["full"]["changed_from_full"] is None


def test_what_is_known_over_seeds_is_there_with_every_seed(
    seeds: Comparison, tmp_path: Path
) -> None:
    document = eval_multi(seeds)
    write_json(tmp_path / "d.json", document)  # nothing that JSON cannot hold
    (group,) = [one for one in document["groups"] if one["name"] == HALF]
    full = group["rates"]["full"]["prefix"]
    assert len(full["values"]) == 3 and full["basis"] == "seeds"
    assert group["losses"]["full"]["normal"]["seeds"] == (0, 1, 2)
    assert group["gain_kept"]["mean"] == pytest.approx(0.97, abs=0.03)
    claim = document["claims"][0]
    assert claim["difference"]["values"] and claim["sentence"].endswith(".")
    assert document["tests"][0]["difference"].keys() == {"value", "lower", "upper"}
    assert {finding["cause"] for found in document["findings"].values() for finding in found}


def test_the_scale_to_deploy_has_its_rate_loss_and_warning() -> None:
    curve = {scale: (60 * scale, 0.78, 1.0) for scale in (0.25, 0.5, 0.75)}
    made = {HALF: with_scales(REFERENCE[HALF], ("bad",), curve)}
    found = eval_multi(comparison_of(collect(made)))["deployment"][HALF]
    assert found["scale"] == 0.0 and found["mode"] == "bad_ablated"
    assert found["rate"]["n"] == 128 and found["normal_loss"]["n"] == 256
    assert "detector must see" in found["warning"]
