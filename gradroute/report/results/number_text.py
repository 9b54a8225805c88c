"""Numbers in sentences: rounded, with interval, n and unit."""

import math
from collections.abc import Iterable, Sequence

from gradroute.report.results.contrasts import GainKept
from gradroute.report.results.run_results import Estimate, Loss, Rate
from gradroute.report.results.seeds import OverSeeds

NOT_MEASURED = "(not measured)"


def rate_text(rate: Rate | None) -> str:
    """A rate in percent with interval and n."""
    if rate is None:
        return NOT_MEASURED
    low, high = 100 * rate.lower, 100 * rate.upper
    return f"{100 * rate.mean:.0f} % [{low:.0f}, {high:.0f}] of {rate.n}"


def loss_text(loss: Loss | None) -> str:
    """A held-out loss in nats per token with interval and n."""
    if loss is None:
        return NOT_MEASURED
    return f"{loss.mean:.3f} [{loss.lower:.3f}, {loss.upper:.3f}] nats over {loss.n}"


def gain_text(kept: GainKept | None) -> str:
    """Gain kept with interval and what it is measured against."""
    if kept is None:
        return NOT_MEASURED
    if math.isnan(kept.value):
        return f"not defined ({kept.against} gains nothing on normal text)"
    interval = "" if math.isnan(kept.lower) else f" [{kept.lower:.2f}, {kept.upper:.2f}]"
    return f"{kept.value:.2f}{interval} against {kept.against}"


def points_text(estimate: Estimate | None) -> str:
    """A difference of rates in percentage points."""
    if estimate is None:
        return NOT_MEASURED
    scaled = Estimate(*(100 * number for number in estimate))
    return f"{signed_number(scaled.value, 0)} points{_bounds(scaled.lower, scaled.upper, 0)}"


def nats_text(estimate: Estimate | None) -> str:
    """A difference of losses."""
    return NOT_MEASURED if estimate is None else f"{signed_text(estimate, 2)} nats"


def signed_text(estimate: Estimate, digits: int) -> str:
    """A signed number with its interval."""
    return signed_number(estimate.value, digits) + _bounds(estimate.lower, estimate.upper, digits)


def signed_number(number: float, digits: int) -> str:
    """A number with its sign; never a minus zero."""
    return f"{round(number, digits) + 0.0:+.{digits}f}"


def seeds_rate_text(rate: OverSeeds | None) -> str:
    """A rate over seeds in percent, every seed shown."""
    if rate is None:
        return NOT_MEASURED
    bounds = "" if rate.basis == "none" else f" [{100 * rate.lower:.0f}, {100 * rate.upper:.0f}]"
    return f"{100 * rate.mean:.0f} %{bounds}{_each(rate, 100, 0)}"


def seeds_points_text(gap: OverSeeds | None) -> str:
    """A difference of rates over seeds in percentage points, every seed shown."""
    if gap is None:
        return NOT_MEASURED
    bounds = "" if gap.basis == "none" else _bounds(100 * gap.lower, 100 * gap.upper, 1)
    return f"{signed_number(100 * gap.mean, 1)} points{bounds}{_each(gap, 100, 1)}"


def seeds_gain_text(gain: OverSeeds | None) -> str:
    """Gain kept over seeds, every seed shown."""
    if gain is None:
        return NOT_MEASURED
    bounds = "" if gain.basis == "none" else f" [{gain.lower:.2f}, {gain.upper:.2f}]"
    return f"{gain.mean:.2f}{bounds}{_each(gain, 1, 2)}"


def p_text(p_value: float) -> str:
    """A p-value; small ones as a bound."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def count_range(counts: Iterable[int]) -> str:
    """One count where all are equal, else the least and the most; 0 for none."""
    found = sorted(set(counts)) or [0]
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def join_words(words: Sequence[str]) -> str:
    """Words with commas and a last `and`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _each(number: OverSeeds, scale: int, digits: int) -> str:
    """The value of each seed, or that there was but one."""
    if len(number.seeds) == 1:
        return f" (seed {number.seeds[0]} alone)"
    values = [f"{round(scale * value, digits) + 0.0:.{digits}f}" for value in number.values]
    return f" (seeds: {', '.join(values)})"


def _bounds(lower: float, upper: float, digits: int) -> str:
    if math.isnan(lower) or math.isnan(upper):
        return ""
    return f" [{signed_number(lower, digits)}, {signed_number(upper, digits)}]"
