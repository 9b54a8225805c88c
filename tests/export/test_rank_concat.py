"""Several adapters as one: the sum of their updates, and a single one as it was."""

import pytest
import torch
from tiny_checkpoints import save

from gradroute.errors import ConfigError
from gradroute.evaluate.geometry import saved_factors
from gradroute.export.rank_concat import alpha_for, as_one
from gradroute.models.checkpoint import adapter_tensors
from gradroute.system.files import read_json, write_json


@pytest.fixture
def checkpoint(tmp_path):
    saved = save(tmp_path / "checkpoints", 1)
    for name in ("good", "bad"):
        described = saved.path / name / "adapter_config.json"
        generator = torch.Generator().manual_seed(len(name))
        rewrite(saved, name, lambda _, t, g=generator: torch.randn(t.shape, generator=g))
        assert read_json(described)["r"] == 3
    return saved


def rewrite(checkpoint, adapter, change):
    from safetensors.torch import save_file

    tensors = adapter_tensors(checkpoint, adapter)
    changed = {key: change(key, tensor) for key, tensor in tensors.items()}
    save_file(changed, checkpoint.path / adapter / "adapter_model.safetensors")


def describe(checkpoint, adapter, **settings):
    path = checkpoint.path / adapter / "adapter_config.json"
    write_json(path, read_json(path) | settings)


def updates(checkpoint, adapters):
    """The float64 sum of s B A by module; the oracle."""
    total = {}
    for name in adapters:
        described = read_json(checkpoint.path / name / "adapter_config.json")
        rank = described["r"] ** (0.5 if described["use_rslora"] else 1)
        tensors = adapter_tensors(checkpoint, name)
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                down, up = tensors[key].double(), tensors[key.replace("_A.", "_B.")].double()
                total[module] = total.get(module, 0) + described["lora_alpha"] / rank * up @ down
    return total


@pytest.mark.parametrize(
    "changed",
    [{}, {"lora_alpha": 1}, {"lora_alpha": 5, "use_rslora": True}],
    ids=["equal scales", "other scales", "rsLoRA"],
)
def test_the_sum_of_two_is_one_of_both_ranks(checkpoint, changed):
    describe(checkpoint, "bad", **changed)
    one = as_one(checkpoint, ["good", "bad"])
    assert one.rank == 6
    expected = updates(checkpoint, ["good", "bad"])
    assert one.modules.keys() == expected.keys()
    for module, (down, up) in one.modules.items():
        found = one.scale * up.double() @ down.double()
        torch.testing.assert_close(found, expected[module], rtol=1e-5, atol=1e-5)


def test_equal_scales_leave_every_number_as_it_was(checkpoint):
    one = as_one(checkpoint, ["good", "bad"])
    good, bad = (saved_factors(checkpoint, name) for name in ("good", "bad"))
    for module, (down, up) in one.modules.items():
        assert down.equal(torch.cat([good[module].A, bad[module].A]))
        assert up.equal(torch.cat([good[module].B, bad[module].B], 1))


@pytest.mark.parametrize("rslora", [False, True])
def test_a_single_adapter_is_kept_bit_by_bit_with_its_own_scale(checkpoint, rslora):
    describe(checkpoint, "good", lora_alpha=7, use_rslora=rslora)
    one = as_one(checkpoint, ["good"])
    assert one.rank == 3
    assert one.alpha == (7 if not rslora else pytest.approx(7 * 3**0.5, rel=1e-15))
    saved = adapter_tensors(checkpoint, "good")
    for module, (down, up) in one.modules.items():
        assert down.equal(saved[f"base_model.model.{module}.lora_A.weight"])
        assert up.equal(saved[f"base_model.model.{module}.lora_B.weight"])
    (scale,) = {factors.scale for factors in saved_factors(checkpoint, "good").values()}
    assert one.scale == pytest.approx(scale, rel=2**-52)


def test_alpha_over_rank_is_the_scale_of_rslora_in_every_type_that_weights_have():
    for rank in range(1, 257):
        for alpha in (1, 16, 2 * rank, 0.3):
            scale = alpha / rank**0.5
            found = alpha_for(scale, rank) / rank
            assert abs(found - scale) <= 2**-52 * scale, (rank, alpha)
            assert torch.tensor(found).equal(torch.tensor(scale))


def test_adapters_of_different_modules_are_refused(checkpoint):
    from safetensors.torch import save_file

    tensors = adapter_tensors(checkpoint, "bad")
    fewer = dict(list(sorted(tensors.items()))[2:])
    save_file(fewer, checkpoint.path / "bad" / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="different modules"):
        as_one(checkpoint, ["good", "bad"])
