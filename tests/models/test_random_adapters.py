"""A random twin is as large as its adapter in every module, and lies elsewhere."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import tiny_family

from gradroute.errors import ConfigError
from gradroute.models.random_adapters import update_norm, write_random_twin
from gradroute.untrusted.adapter_folder import read_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    settings = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(tiny_family("llama", dtype=torch.float32), settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.01 * (1 + number))
    model.save_pretrained(str(folder))
    return folder


def test_the_update_of_every_module_has_the_norm_of_the_adapter_and_not_its_direction(
    saved: Path, tmp_path: Path
):
    write_random_twin(saved, tmp_path / "random", 7)
    one, other = read_adapter(str(saved), "x"), read_adapter(str(tmp_path / "random"), "x")
    assert (one.rank, one.scaling, one.tensors.keys()) == (
        other.rank, other.scaling, other.tensors.keys(),
    )  # fmt: skip
    norms = set()
    for module, (down, up) in one.factors.items():
        low, high = other.factors[module]
        update, random = (up.double() @ down.double()), (high.double() @ low.double())
        assert float(random.norm()) == pytest.approx(float(update.norm()), rel=1e-6)
        assert update_norm(down, up) == pytest.approx(float(update.norm()), rel=1e-12)
        assert abs(float((update * random).sum() / update.norm() / random.norm())) < 0.3
        norms.add(round(float(update.norm()), 6))
    assert len(norms) == len(one.factors)


def test_the_same_seed_gives_the_same_files_and_another_one_others(saved: Path, tmp_path: Path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_random_twin(saved, tmp_path / name, seed)
    before = read_adapter(str(tmp_path / "a"), "x").identity
    write_random_twin(saved, tmp_path / "a", 7)  # in the place of what is there
    same = [read_adapter(str(tmp_path / name), "x").identity == before for name in "abc"]
    assert same == [True, True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_without_an_adapter_there_is_none_to_be_as_large_as(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        write_random_twin(tmp_path / "none", tmp_path / "random", 7)
