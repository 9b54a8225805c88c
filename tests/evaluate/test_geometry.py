import math

import pytest
import torch
from evaluate.tiny_writers import writer
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import Linear
from torch import Tensor

from gradroute.errors import ConfigError
from gradroute.evaluate.geometry import (
    Factors,
    adapter_factors,
    mean_absolute,
    random_cosines,
    update_cosines,
)
from gradroute.routing.hosting import lora_layers


def factors(seed: int, inputs: int, outputs: int, rank: int, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(rank, inputs, generator=generator, dtype=torch.float64),
        torch.randn(outputs, rank, generator=generator, dtype=torch.float64),
        scale,
    )


def dense(factor: Factors) -> Tensor:
    return (factor.scale * factor.B @ factor.A).double().flatten()


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(*[st.integers(1, 12)] * 4),
    scale=st.sampled_from([-3.0, 0.01, 2.0]),
)
def test_cosines_equal_those_of_the_dense_updates(
    seed: int, sizes: tuple[int, int, int, int], scale: float
) -> None:
    inputs, outputs, rank, other_rank = sizes
    one = factors(seed, inputs, outputs, rank, scale)
    two = factors(seed + 1, inputs, outputs, other_rank)
    wanted = torch.cosine_similarity(dense(one), dense(two), dim=0)
    found = update_cosines({"m": one}, {"m": two})["m"]
    assert found == pytest.approx(float(wanted), abs=1e-9)


def test_an_update_points_along_itself_and_against_its_negative() -> None:
    one = factors(0, 5, 4, 2)
    assert update_cosines({"m": one}, {"m": one})["m"] == pytest.approx(1.0)
    against = one._replace(scale=-0.3)
    assert update_cosines({"m": one}, {"m": against})["m"] == pytest.approx(-1.0)


def test_an_update_of_zero_has_no_direction_and_is_left_out_of_the_mean() -> None:
    one, two = factors(0, 5, 4, 2), factors(1, 5, 4, 2)
    zero = two._replace(B=torch.zeros_like(two.B))
    cosines = update_cosines({"a": one, "b": one}, {"a": zero, "b": two})
    assert math.isnan(cosines["a"])
    assert mean_absolute(cosines) == abs(cosines["b"])
    assert math.isnan(mean_absolute({"a": math.nan}))


def test_modules_of_only_one_adapter_are_left_out() -> None:
    one = factors(0, 5, 4, 2)
    assert list(update_cosines({"a": one, "b": one}, {"b": one, "c": one})) == ["b"]


def test_factors_of_a_model_are_its_weight_updates() -> None:
    model = writer()
    for name in ("good", "bad"):
        found = adapter_factors(model, name)
        layers = lora_layers(model.get_base_model())
        assert found.keys() == layers.keys()
        for path, layer in layers.items():
            assert isinstance(layer, Linear)
            wanted = layer.get_delta_weight(name).flatten().double()
            torch.testing.assert_close(dense(found[path]), wanted, rtol=1e-5, atol=1e-6)


def test_an_adapter_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no adapter 'ugly'.*good, bad"):
        adapter_factors(writer(), "ugly")


def test_random_updates_have_the_cosine_of_random_directions() -> None:
    one, two = {"m": factors(0, 40, 30, 4)}, {"m": factors(1, 40, 30, 7)}
    found = random_cosines(one, two, draws=400, seed=0)
    # E cos^2 is about 1 / (inputs * outputs) for Gaussian factors of any rank, so that E |cos| is
    # about sqrt(2 / pi) times its root.
    assert found.mean == pytest.approx(math.sqrt(2 / math.pi / (40 * 30)), rel=0.15)
    assert 0 <= found.lower < found.mean < found.upper < 1


def test_random_updates_depend_on_shapes_and_seed_alone() -> None:
    one, two = {"m": factors(0, 8, 6, 2)}, {"m": factors(1, 8, 6, 3)}
    first = random_cosines(one, two, draws=3, seed=0)
    torch.manual_seed(99)
    other_values = random_cosines({"m": factors(5, 8, 6, 2, 9.0)}, two, draws=3, seed=0)
    assert other_values == first
    assert random_cosines(one, two, draws=3, seed=1) != first
