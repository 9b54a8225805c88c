"""Angles and cosines between two adapters' weight updates.

An adapter with factors A [rank, in], B [out, rank] and scale s adds `dW = s B A` to a weight. With
the Frobenius inner product,

    <dW_1, dW_2> = s_1 s_2 tr(A_1^T B_1^T B_2 A_2) = s_1 s_2 sum((B_1^T B_2) * (A_1 A_2^T)),

so that only products of size rank x rank are needed, never one of size out x in.

What an update reads are the rows of A, a subspace of the inputs; what it writes are the columns of
B, a subspace of the outputs. Two adapters are told apart by the principal angles between the two
subspaces on either side. None of these numbers says anything alone: random subspaces of rank r in n
dimensions overlap by r / n, so that every one stands beside its value for random updates.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from gradroute.errors import ConfigError
from gradroute.models.checkpoint import Checkpoint, adapter_tensors
from gradroute.routing.layers import adapter_weights, lora_layers
from gradroute.system.files import read_json


class Factors(NamedTuple):
    """One adapter's update of one weight, `scale * B @ A`."""

    A: Float[Tensor, "rank inputs"]
    B: Float[Tensor, "outputs rank"]
    scale: float


class RandomCosines(NamedTuple):
    """Mean absolute cosine of random updates: over all draws, and the extremes of the draws."""

    mean: float
    lower: float
    upper: float
    draws: int


def adapter_factors(model: PeftModel, adapter: str) -> dict[str, Factors]:
    """The factors of one adapter, by the name of the module that it adapts.

    Raises:
        ConfigError: The model has no such adapter.
    """
    found = {
        name: Factors(*adapter_weights(layer, adapter), float(layer.scaling[adapter]))
        for name, layer in lora_layers(model.get_base_model()).items()
        if adapter in layer.lora_A
    }
    if not found:
        raise ConfigError(
            f"the model has no adapter {adapter!r} to compare; it has "
            f"{', '.join(model.peft_config) or 'none'}."
        )
    return found


def saved_factors(checkpoint: Checkpoint, adapter: str) -> dict[str, Factors]:
    """The factors of one adapter from a verified checkpoint; the base model is not needed.

    Modules come in the order of their layers, where the file has 10 before 2.

    Raises:
        MachineError: The checkpoint holds no such adapter.
    """
    weights = adapter_tensors(checkpoint, adapter)
    described = read_json(checkpoint.path / adapter / "adapter_config.json")
    rank = described["r"]
    scale = float(described["lora_alpha"]) / (rank**0.5 if described.get("use_rslora") else rank)
    names = [key.removesuffix(".lora_A.weight") for key in weights if ".lora_A." in key]
    names.sort(key=lambda name: [(int(p), "") if p.isdigit() else (0, p) for p in name.split(".")])
    return {
        name.removeprefix("base_model.model."): Factors(
            weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"], scale
        )
        for name in names
    }


def inner_product(first: Factors, second: Factors) -> float:
    """Frobenius inner product of two updates of the same weight, in float64."""
    a1, b1, a2, b2 = (part.detach().to(torch.float64) for part in (*first[:2], *second[:2]))
    return first.scale * second.scale * float(((b1.T @ b2) * (a1 @ a2.T)).sum())


def update_cosines(first: Mapping[str, Factors], second: Mapping[str, Factors]) -> dict[str, float]:
    """Cosine of two adapters' weight updates, module by module.

    `cos = <dW_1, dW_2> / (|dW_1| |dW_2|)` with the Frobenius product. An update of zero (an adapter
    that was never trained) has no direction: its cosine is NaN.

    Args:
        first: Factors by module name.
        second: The same of another adapter; modules that only one of them adapts are left out.
    """
    cosines = {}
    for module in first:
        if module in second:
            one, two = first[module], second[module]
            norms = math.sqrt(inner_product(one, one)) * math.sqrt(inner_product(two, two))
            cosines[module] = inner_product(one, two) / norms if norms > 0 else math.nan
    return cosines


def mean_absolute(cosines: Mapping[str, float]) -> float:
    """Mean of the absolute cosines that exist; NaN if none does."""
    known = [abs(cosine) for cosine in cosines.values() if not math.isnan(cosine)]
    return sum(known) / len(known) if known else math.nan


def random_cosines(
    first: Mapping[str, Factors], second: Mapping[str, Factors], *, draws: int, seed: int
) -> RandomCosines:
    """Mean absolute cosine of updates that have nothing to do with each other.

    Every factor is replaced by one of the same shape with independent standard normal entries.

    Args:
        first: Factors by module name; only their shapes are used.
        second: The same of another adapter.
        draws: How often all modules are drawn.
        seed: Of the draws.
    """
    pairs = _random_pairs(first, second, draws, seed)
    means = [mean_absolute(update_cosines(one, two)) for one, two in pairs]
    return RandomCosines(sum(means) / draws, min(means), max(means), draws)


def principal_angles(first: Float[Tensor, "n p"], second: Float[Tensor, "n q"]) -> list[float]:
    """Principal angles between the column spaces of two matrices, ascending, in radians.

    With orthonormal bases Q1 and Q2 (of no more columns than Q1), the cosines of the angles are the
    singular values of `Q1^T Q2` and their sines those of `Q2 - Q1 Q1^T Q2` (A. Bjorck and
    G. H. Golub, "Numerical methods for computing angles between linear subspaces", Math. Comp. 27
    (1973) 579-594). A cosine near 1 has lost what tells small angles apart, and a sine near 1 the
    large ones; `atan2` of the two is accurate for both.

    Returns:
        As many angles as the smaller of the two subspaces has dimensions; none where a matrix is 0.
    """
    one, two = _orthonormal(first), _orthonormal(second)
    if one.shape[1] < two.shape[1]:
        one, two = two, one
    product = one.T @ two
    cosines = torch.linalg.svdvals(product)  # descending, so that the angles ascend
    sines = torch.linalg.svdvals(two - one @ product).flip(0)
    return torch.atan2(sines, cosines).tolist()


def mean_cos2(angles: Sequence[float]) -> float | None:
    """Mean squared cosine of principal angles: how much two subspaces overlap; None without angles.

    1 where one holds the other, 0 where they are orthogonal. For random subspaces of dimensions
    p >= q in n dimensions the expectation is p / n.
    """
    return sum(math.cos(angle) ** 2 for angle in angles) / len(angles) if angles else None


class PairGeometry(NamedTuple):
    """Two adapters' updates of one weight.

    Attributes:
        cosine: Of the updates with the Frobenius product; None where an update is 0.
        angles_A: Principal angles between what the two read, the row spaces of A, in radians.
        angles_B: The same of what they write, the column spaces of B; none where a B is 0.
    """

    cosine: float | None
    angles_A: list[float]
    angles_B: list[float]


def pair_geometry(
    first: Mapping[str, Factors], second: Mapping[str, Factors]
) -> dict[str, PairGeometry]:
    """Cosine and principal angles of two adapters, module by module.

    Args:
        first: Factors by module name.
        second: The same of another adapter; modules that only one of them adapts are left out.
    """
    return {
        module: PairGeometry(
            None if math.isnan(cosine) else cosine,
            principal_angles(first[module].A.T, second[module].A.T),
            principal_angles(first[module].B, second[module].B),
        )
        for module, cosine in update_cosines(first, second).items()
    }


def geometry(
    first: Mapping[str, Factors], second: Mapping[str, Factors], *, draws: int, seed: int
) -> dict[str, Any]:
    """Everything about how two adapters lie to each other, as plain data.

    Args:
        first: Factors by module name.
        second: The same of another adapter.
        draws: How often random updates of the same shapes are drawn to compare with.
        seed: Of the draws.

    Returns:
        `modules`: per module its `layer` and name within it (see `module_places`), `cosine`,
        `angles_A`, `angles_B`, `mean_cos2_A`, `mean_cos2_B`, and under `random` the same of random
        updates: the mean over the draws of the absolute cosine, of each angle in turn and so on.
        `summary`: means over the modules. `random`: the same of random updates, mean and extremes
        of the draws. What does not exist, since an update is 0, is None and enters no mean.
    """
    found = pair_geometry(first, second)
    places = module_places(list(found))
    random = [pair_geometry(*pair) for pair in _random_pairs(first, second, draws, seed)]
    summaries = [_summary(one) for one in random]
    return {
        "modules": {
            module: {
                **places[module],
                **_numbers(pair),
                "random": _mean_numbers([one[module] for one in random]),
            }
            for module, pair in found.items()
        },
        "summary": _summary(found),
        "random": {
            "draws": draws,
            **{key: _spread([one[key] for one in summaries]) for key in _summary(found)},
        },
    }


def module_places(modules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Where modules are in the model: the number of the layer and the name within it.

    The layer is the first number in the path, None where there is none. The name is as short an end
    of the path as tells all modules of a layer apart: `q_proj`, but `attn.c_proj` and `mlp.c_proj`.
    """
    layers: dict[str, int | None] = {}
    for module in modules:
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
        layers[module] = int(number[1]) if number else None
    parts = 1
    while True:
        names = {module: ".".join(module.split(".")[-parts:]) for module in modules}
        distinct = len({(layers[module], names[module]) for module in modules}) == len(names)
        if distinct or parts > max(module.count(".") for module in modules):
            return {m: {"layer": layers[m], "module": names[m]} for m in modules}
        parts += 1


def _orthonormal(matrix: Float[Tensor, "n k"]) -> Float[Tensor, "n rank"]:
    """An orthonormal basis of the column space, float64; directions that are rounding are left out.

    A direction counts if its singular value is above eps max(n, k) times the largest, as in
    `scipy.linalg.orth`; the QR before leaves only a k x k matrix to decompose.
    """
    q, r = torch.linalg.qr(matrix.detach().to("cpu", torch.float64))
    u, values, _ = torch.linalg.svd(r, full_matrices=False)
    least = torch.finfo(torch.float64).eps * max(matrix.shape) * values.max()
    return q @ u[:, values > least]


def _numbers(pair: PairGeometry) -> dict[str, Any]:
    overlap = {"mean_cos2_A": mean_cos2(pair.angles_A), "mean_cos2_B": mean_cos2(pair.angles_B)}
    return {**pair._asdict(), **overlap}


def _mean_numbers(pairs: Sequence[PairGeometry]) -> dict[str, Any]:
    """`_numbers` averaged over draws, the cosine as an absolute value."""
    drawn = [_numbers(pair) for pair in pairs]
    means: dict[str, Any] = {"cosine": _mean([one["cosine"] for one in drawn], absolute=True)}
    for key in ("angles_A", "angles_B"):
        means[key] = [_mean(angles) for angles in zip(*(one[key] for one in drawn), strict=True)]
    for key in ("mean_cos2_A", "mean_cos2_B"):
        means[key] = _mean([one[key] for one in drawn])
    return means


def _summary(pairs: Mapping[str, PairGeometry]) -> dict[str, float | None]:
    """Means over the modules that have the number."""
    numbers = [_numbers(pair) for pair in pairs.values()]
    return {
        "mean_absolute_cosine": _mean([one["cosine"] for one in numbers], absolute=True),
        "mean_cos2_A": _mean([one["mean_cos2_A"] for one in numbers]),
        "mean_cos2_B": _mean([one["mean_cos2_B"] for one in numbers]),
    }


def _mean(values: Sequence[float | None], *, absolute: bool = False) -> float | None:
    """Mean of the values that exist; None if none does."""
    known = [abs(value) if absolute else value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {
        "mean": _mean(values),
        "lower": min(known, default=None),
        "upper": max(known, default=None),
    }


def _random_pairs(
    first: Mapping[str, Factors], second: Mapping[str, Factors], draws: int, seed: int
) -> Iterator[tuple[dict[str, Factors], dict[str, Factors]]]:
    """Random updates of the shapes of two adapters, `draws` times, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield _random(first, generator), _random(second, generator)


def _random(factors: Mapping[str, Factors], generator: torch.Generator) -> dict[str, Factors]:
    return {
        name: Factors(
            torch.randn(factor.A.shape, generator=generator),
            torch.randn(factor.B.shape, generator=generator),
            1.0,
        )
        for name, factor in factors.items()
    }
