"""The card: license, warnings and evidence as they are known."""

import shutil

import pytest
from huggingface_hub import ModelCard

from benchmarks.exports import save_family, short_run
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.export.card import Subject, export_card
from gradroute.export.checks import Check
from gradroute.export.evidence import controls, evidence
from gradroute.export.license import UNKNOWN, base_license
from gradroute.models.base import embedded_model
from gradroute.runs.folder import RunFolder

SUBJECT = Subject(
    run="half",
    step=350,
    form="merged",
    shipped=("good",),
    left_out=("bad",),
    base_name="org/model",
    base="hub revision abc",
    license="gemma",
    rank=32,
    scale=2.0,
    warnings=("Look <here>.",),
)


def test_the_license_is_that_of_the_bases_own_card(tmp_path):
    assert base_license(embedded_model(), None) == "apache-2.0"
    assert base_license(str(tmp_path), None) == UNKNOWN
    for text, license in (
        ("---\nlicense: MIT\n---\n", "mit"),
        ("---\nlanguage: en\nlicense: 'llama3.2'\n---\n", "llama3.2"),
        ("license: mit\n", UNKNOWN),
        ("---\nlicense: [a, b]\n---\n", UNKNOWN),
        ("---\nlicense: x\ny: !!python/object z\n---\n", "x"),
    ):
        (tmp_path / "README.md").write_text(text)
        assert base_license(str(tmp_path), None) == license


def test_a_base_on_the_hub_that_cannot_be_reached_has_an_unknown_license():
    assert base_license("nobody/nothing", "main") == UNKNOWN


def test_the_head_of_a_card_is_read_by_the_hubs_own_reader():
    text = export_card(
        SUBJECT,
        [Check("logits", True, "a_b <c>")],
        "| x |",
        adapters=("good", "bad"),
        behaviors={"bad": "caps"},
        table=None,
    )
    head = ModelCard(text).data.to_dict()
    assert (head["license"], head["base_model"]) == ("gemma", "org/model")
    assert head["library_name"] == "transformers" and "gradient-routing" in head["tags"]
    assert "Look \\<here>." in text and "a_b \\<c>" in text
    assert "under the routing table `of its own`; kept: good; left out: bad" in text
    assert "on `org/model` (hub revision abc; license gemma)" in text


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    save_family(root / "bases" / "llama", "llama")
    control = ("routing=none", "control=none", "control_of=llama", "run_name=llama-none")
    routed, unrouted = short_run(root, "llama"), short_run(root, "llama", *control)
    for folder in (routed, unrouted):
        evaluate_run(folder, EvaluationRequest(modes=("full", "bad_ablated", "base")))
    other = shutil.copytree(unrouted.path, root / "stranger")
    text = (other / "config.yaml").read_text().replace("control_of: llama", "control_of: else")
    (other / "config.yaml").write_text(text)
    return routed


def test_controls_beside_the_run_stand_in_the_table(measured):
    assert [folder.name for folder in controls(measured)] == ["llama-none"]
    text = evidence(measured, "bad_ablated")
    assert "| unrouted | llama-none | bad_ablated |" in text.replace("\\_", "_")
    assert "Gain kept under bad" in text
    assert "Relearning by fine-tuning was not measured" in text


def test_a_run_that_was_not_measured_is_said_to_be(tmp_path):
    assert evidence(RunFolder(tmp_path), "full").startswith("The run was not measured")
