"""A run of several behaviors: a label each, and what does not fit together."""

from pathlib import Path

import pytest

from gradroute.config.run_config import config_differences, dump_config, load_config
from gradroute.errors import ConfigError

SEVERAL = ("behavior={caps: caps, sig: signature}", "adapters={good: {}, caps: {}, sig: {}}")


def test_behaviors_have_labels_and_a_single_one_the_label_bad() -> None:
    assert load_config(None).behaviors == {"bad": "caps"}
    several = load_config(None, SEVERAL)
    assert several.behaviors == {"caps": "caps", "sig": "signature"}
    assert several.policy.labels == ("caps", "sig", "unlabeled", "good")
    assert load_config(None, ["behavior={bad: dialect}"]).behavior == "dialect"


def test_several_behaviors_survive_a_dump(tmp_path: Path) -> None:
    config = load_config(None, SEVERAL)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    swapped = load_config(None, ["behavior={sig: signature, caps: caps}", SEVERAL[1]])
    assert config_differences(config, swapped)["behavior"] == ("caps, sig", "sig, caps")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((SEVERAL[0],), "needs the adapters good, caps and sig, this model has good, bad"),
        (
            (*SEVERAL, "routing={caps: {good: freeze, caps: update, sig: ablate}}"),
            "the label sig has no row in the routing table; add one, as in sig: {good: update",
        ),
        (
            (*SEVERAL, "data.behavior_fraction=0.6"),
            "each of 2 behaviors takes this share of the examples, so at most 0.5",
        ),
        (("behavior={good: caps}",), "is the label of examples without any behavior"),
        (("behavior={}",), "a mapping such as"),
    ],
)
def test_behaviors_that_do_not_fit_are_one_sentence(
    overrides: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert sentence in str(caught.value)
