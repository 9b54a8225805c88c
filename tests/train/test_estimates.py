"""Estimates of a run's memory, time and disk space, from its own first steps."""

import sys

import pytest
from tiny_runs import TINY, TWO

from gradroute.config.run_config import find_config, load_config
from gradroute.models.base import load_base_of
from gradroute.models.trained import attach
from gradroute.preflight.validation import Validation
from gradroute.preflight.validation_text import text_of
from gradroute.prepare import prepare, tokenize_examples
from gradroute.train.estimates import estimate


def test_where_the_system_does_not_tell_the_memory_of_a_process_the_rest_is_still_estimated(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    config = load_config(find_config("caps"), (*TINY, *TWO, "data.train_examples=80"))
    prepared, base = prepare(config), load_base_of(config)
    rows, _ = tokenize_examples(prepared.train, prepared.policy, base, config.data.max_length)
    found = estimate(attach(base.model, config), rows, prepared, config, base.pad_id)
    assert found["memory"] is None
    assert found["step_seconds"] > 0 and found["disk"] > 0 and found["micro_batch"] == 4
    text = text_of(Validation({"estimate": {**found, "runs": 1}}, ()))
    assert "memory is not estimated: this system does not tell how much a process" in text
