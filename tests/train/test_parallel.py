"""How ranks share a run: what is chosen, and what is refused before anything is loaded."""

import pytest

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError
from gradroute.system.ranks import Ranks
from gradroute.train.parallel import cached_settings, strategy_of


def chosen(size, *overrides, audit=False):
    return strategy_of(load_config(None, ["run_name=x", *overrides]), Ranks(size=size), audit=audit)


@pytest.mark.parametrize(
    ("size", "asked", "wanted"),
    [
        (1, "auto", "none"),
        (2, "auto", "ddp"),
        (1, "ddp", "none"),
        (4, "ddp", "ddp"),
        (1, "none", "none"),
        (1, "fsdp2", "fsdp2"),
        (2, "fsdp2", "fsdp2"),
    ],
)
def test_auto_is_ddp_where_there_are_several_and_fsdp2_comes_by_name(size, asked, wanted):
    assert chosen(size, f"train.parallel={asked}") == wanted


def test_a_number_of_ranks_that_does_not_divide_the_step_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"12 examples .* 5 processes.*Launch 1, 2, 3, 4, 6, 12"):
        chosen(5, "train.batch_size=4", "train.gradient_accumulation=3")


def test_one_process_only_is_refused_to_several():
    with pytest.raises(ConfigError, match="2 were launched"):
        chosen(2, "train.parallel=none")


@pytest.mark.parametrize("setting", ["quantize=8bit", "train.kl_good=0.5", "train.teacher=a@full"])
def test_what_sharded_layers_cannot_have_is_refused_by_name_and_ddp_has_it(setting):
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"fsdp2.*{key}.*Use train\.parallel=ddp"):
        chosen(2, "train.parallel=fsdp2", setting)
    assert chosen(2, "train.parallel=ddp", setting) == "ddp"


def test_an_audit_of_several_processes_is_refused():
    with pytest.raises(ConfigError, match="--audit"):
        chosen(2, audit=True)
    assert chosen(1, audit=True) == "none"


def test_hidden_states_are_not_kept_for_sharded_layers_and_that_is_said(capsys):
    settings = load_config(None, ["run_name=x", "train.reuse_frozen=true"]).train
    assert cached_settings(settings, "ddp", "x") is settings
    assert not cached_settings(settings, "fsdp2", "x").reuse_frozen
    assert "train.reuse_frozen has no effect under train.parallel=fsdp2" in capsys.readouterr().err
