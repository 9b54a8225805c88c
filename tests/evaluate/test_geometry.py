import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import geometry_reference
from peft.tuners.lora import Linear
from safetensors.torch import save_file
from small_llama import small_llama
from tiny_writers import writer
from torch import Tensor

from gradroute.errors import ConfigError, MachineError
from gradroute.evaluate.geometry import (
    Factors,
    adapter_factors,
    geometry,
    mean_absolute,
    mean_cos2,
    module_places,
    pair_geometry,
    principal_angles,
    random_cosines,
    saved_factors,
    update_cosines,
)
from gradroute.models.checkpoint import save_checkpoint
from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.routing.layers import lora_layers


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


def orthogonal(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(1, 6), st.integers(1, 6)),
    near=st.sampled_from([0.0, 1e-6, 1.0]),
)
def test_geometry_equals_that_of_the_dense_matrices(
    seed: int, sizes: tuple[int, int, int, int], near: float
) -> None:
    inputs, outputs, rank, other_rank = sizes
    one = factors(seed, inputs, outputs, rank)
    two = factors(seed + 1, inputs, outputs, other_rank)
    if rank == other_rank and near < 1:  # subspaces that nearly coincide
        two = Factors(one.A + near * two.A, one.B + near * two.B, 1.0)
    wanted = geometry_reference(one[:2], two[:2])
    found = pair_geometry({"m": one}, {"m": two})["m"]
    assert found.cosine == pytest.approx(wanted.cosine, abs=1e-9)
    # SciPy takes some small angles from their cosines, which know them to 1e-7 at best.
    assert found.angles_A == pytest.approx(wanted.angles_A, abs=2e-7)
    assert found.angles_B == pytest.approx(wanted.angles_B, abs=2e-7)


@given(
    seed=st.integers(0, 10**6),
    angles=st.lists(
        st.sampled_from([0.0, 1e-13, 1e-10, 1e-5, 0.1, math.pi / 4, 1.0, math.pi / 2 - 1e-9])
        | st.floats(0.0, math.pi / 2),
        min_size=1,
        max_size=4,
    ),
    more=st.integers(0, 3),
)
def test_known_angles_are_found_to_the_last_digits_small_and_large_together(
    seed: int, angles: list[float], more: int
) -> None:
    p = len(angles)
    frame = orthogonal(2 * p + more, seed)
    one = torch.cat([frame[:, :p], frame[:, 2 * p :]], 1)  # of more dimensions than the other
    turn = torch.tensor(angles, dtype=torch.float64)
    two = frame[:, :p] * turn.cos() + frame[:, p : 2 * p] * turn.sin()
    mixed = two @ orthogonal(p, seed + 1)  # another basis of the same subspace
    for left, right in ((one, mixed), (mixed, one)):
        assert principal_angles(left, right) == pytest.approx(sorted(angles), abs=5e-15 * 2**p)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-12, 1.0, 1e9]))
def test_angles_are_those_of_the_subspaces_whatever_their_basis_and_length(
    seed: int, scale: float
) -> None:
    one, two = factors(seed, 9, 1, 3).A.T, factors(seed + 1, 9, 1, 4).A.T
    basis = orthogonal(3, seed) * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) * scale
    assert principal_angles(one @ basis, two) == pytest.approx(principal_angles(one, two), abs=1e-9)
    assert principal_angles(one, one @ basis) == pytest.approx([0.0] * 3, abs=1e-9)


def test_a_matrix_of_zeros_spans_nothing_and_repeated_columns_span_once() -> None:
    one = factors(0, 6, 1, 3).A.T
    assert principal_angles(torch.zeros_like(one), one) == []
    assert mean_cos2([]) is None
    twice = torch.cat([one[:, :2], one[:, :2]], 1)
    assert principal_angles(twice, one) == pytest.approx([0.0, 0.0], abs=1e-12)


def test_subspaces_that_fill_the_space_have_no_angle_between_them() -> None:
    assert principal_angles(orthogonal(4, 0), orthogonal(4, 1)) == pytest.approx([0.0] * 4)


def test_random_subspaces_overlap_by_rank_over_dimensions() -> None:
    one, two = {"m": factors(0, 40, 30, 4)}, {"m": factors(1, 40, 30, 7)}
    found = geometry(one, two, draws=300, seed=0)
    assert found["random"]["draws"] == 300
    for key, wanted in (("mean_cos2_A", 7 / 40), ("mean_cos2_B", 7 / 30)):
        spread = found["random"][key]
        assert spread["mean"] == pytest.approx(wanted, rel=0.05)
        assert spread["lower"] < spread["mean"] < spread["upper"]
        assert found["modules"]["m"]["random"][key] == pytest.approx(spread["mean"])
    cosines = random_cosines(one, two, draws=300, seed=0)
    spread = found["random"]["mean_absolute_cosine"]
    assert (spread["mean"], spread["lower"]) == pytest.approx((cosines.mean, cosines.lower))


def test_a_module_stands_beside_random_ones_of_its_own_shape() -> None:
    one = {"layers.0.a": factors(0, 20, 10, 2), "layers.1.b": factors(1, 8, 10, 3)}
    two = {"layers.0.a": factors(2, 20, 10, 3), "layers.1.b": factors(3, 8, 10, 2)}
    found = geometry(one, two, draws=4, seed=0)["modules"]
    assert [(m["layer"], m["module"]) for m in found.values()] == [(0, "a"), (1, "b")]
    for module in found.values():
        for key in ("angles_A", "angles_B"):
            assert len(module[key]) == len(module["random"][key]) == 2
            assert module[key] == sorted(module[key])
        assert module["mean_cos2_A"] == mean_cos2(module["angles_A"])
    # The rank is a larger part of 8 dimensions than of 20.
    overlaps = [module["random"]["mean_cos2_A"] for module in found.values()]
    assert overlaps[0] < overlaps[1]


def test_an_untrained_adapter_gives_null_and_never_a_number_that_is_not_one() -> None:
    one, two = factors(0, 6, 5, 2), factors(1, 6, 5, 2)
    zero = two._replace(B=torch.zeros_like(two.B))
    found = geometry({"a": one, "b": one}, {"a": zero, "b": two}, draws=2, seed=0)
    untrained = found["modules"]["a"]
    assert (untrained["cosine"], untrained["angles_B"], untrained["mean_cos2_B"]) == (
        None,
        [],
        None,
    )
    assert len(untrained["angles_A"]) == 2
    assert found["summary"]["mean_cos2_B"] == found["modules"]["b"]["mean_cos2_B"]
    nothing = geometry({"a": one}, {"a": zero}, draws=2, seed=0)
    assert nothing["summary"]["mean_absolute_cosine"] is None
    assert nothing["random"]["mean_absolute_cosine"]["mean"] > 0
    json.dumps([found, nothing], allow_nan=False)


def test_modules_are_named_by_as_little_as_tells_them_apart_in_their_layer() -> None:
    llama = ["model.layers.10.self_attn.q_proj", "model.layers.11.self_attn.q_proj"]
    assert [(p["layer"], p["module"]) for p in module_places(llama).values()] == [
        (10, "q_proj"),
        (11, "q_proj"),
    ]
    gpt2 = ["transformer.h.3.attn.c_proj", "transformer.h.3.mlp.c_proj"]
    assert [p["module"] for p in module_places(gpt2).values()] == ["attn.c_proj", "mlp.c_proj"]
    experts = ["m.layers.0.experts.0.up", "m.layers.0.experts.1.up", "lm_head"]
    places = module_places(experts)
    assert [p["module"] for p in places.values()] == ["0.up", "1.up", "lm_head"]
    assert places["lm_head"]["layer"] is None
    assert module_places([]) == {}


def test_factors_of_a_checkpoint_are_those_of_the_model_that_wrote_it(tmp_path) -> None:
    model = writer()
    saved = save_checkpoint(tmp_path, 3, model, {}, config_text="", policy={})
    for name in ("good", "bad"):
        live, read = adapter_factors(model, name), saved_factors(saved, name)
        assert live.keys() == read.keys()
        for path, factor in live.items():
            assert torch.equal(factor.A, read[path].A) and torch.equal(factor.B, read[path].B)
            assert factor.scale == read[path].scale
    with pytest.raises(MachineError, match="no adapter 'ugly'"):
        saved_factors(saved, "ugly")


def test_factors_of_a_checkpoint_have_the_scaling_of_rslora(tmp_path) -> None:
    spec = {"good": AdapterSpec(rank=4, alpha=6.0, rslora=True)}
    model = attach_adapters(small_llama(), spec)
    saved = save_checkpoint(tmp_path, 1, model, {}, config_text="", policy={})
    assert {factor.scale for factor in saved_factors(saved, "good").values()} == {3.0}


def test_modules_of_a_checkpoint_come_in_the_order_of_their_layers(tmp_path) -> None:
    saved = save_checkpoint(tmp_path, 1, writer(), {}, config_text="", policy={})
    weights = saved.path / "good" / "adapter_model.safetensors"
    name = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
    tensors = {
        name.format(layer, module, side): torch.ones(2, 2)
        for layer in (0, 2, 10, 11)
        for module in ("q_proj", "k_proj")
        for side in "AB"
    }
    save_file(tensors, weights)
    found = [path.split(".")[2] for path in saved_factors(saved, "good")]
    assert found == ["0", "0", "2", "2", "10", "10", "11", "11"]
