"""Numbers as people read them. Every function takes None as "unknown"."""

from __future__ import annotations

import math

from tuneport.advisor.measurement import Estimate
from tuneport.core.money import Range

UNKNOWN = "unknown"
MINUS = "\u2212"


def usd(value: float | None) -> str:
    """US dollars with sensible digits: $1.2M, $12,300, $4.50, $0.00062."""
    if value is None:
        return UNKNOWN
    sign, size = (MINUS if value < 0 else ""), abs(value)
    if size >= 999_950_000:
        return f"{sign}${size / 1e9:.3g}B"
    if size >= 999_950:
        return f"{sign}${size / 1e6:.3g}M"
    if size >= 10_000:
        return f"{sign}${round(size, -2):,.0f}"
    if size >= 100:
        return f"{sign}${size:,.0f}"
    if size >= 1 or size == 0:
        return f"{sign}${size:.2f}" if size != int(size) else f"{sign}${size:.0f}"
    size = float(f"{size:.1e}")
    digits = 1 - math.floor(math.log10(size))
    return f"{sign}${size:.{min(digits, 10)}f}"


def usd_range(value: Range | None) -> str:
    """A range of US dollars, or one figure where both ends read the same."""
    if value is None:
        return UNKNOWN
    low, high = usd(value.low), usd(value.high)
    return low if low == high else f"{low} to {high}"


def count(value: float | None) -> str:
    """A count with separators; millions and more shortened."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:.3g}B"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value:,.0f}" if size >= 100 or value == int(value) else f"{value:.2g}"


def count_range(value: Range | None) -> str:
    """A range of counts."""
    if value is None:
        return UNKNOWN
    low, high = count(value.low), count(value.high)
    return low if low == high else f"{low} to {high}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %".replace("-", MINUS)


def probability(value: float | None) -> str:
    """A simulated probability; never shown as certain."""
    if value is None:
        return UNKNOWN
    return "over 99 %" if value > 0.99 else "under 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def interval(estimate: Estimate | None) -> str:
    """A share with its interval."""
    return UNKNOWN if estimate is None else f"{percent(estimate.value)} ({percent(estimate.low)} to {percent(estimate.high)})"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return UNKNOWN if value is None else f"{100 * value:+.1f}".replace("-", MINUS)


def points_interval(estimate: Estimate) -> str:
    """A difference in percentage points with its interval."""
    return f"{points(estimate.value)} ({points(estimate.low)} to {points(estimate.high)})"


def p_value(value: float | None) -> str:
    """A p-value; tiny ones as a bound."""
    return "\u2013" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def months(value: float | None) -> str:
    """A span of months; None is never."""
    if value is None:
        return "never"
    if value < 0.05:
        return "at once"
    return f"{value:.1f} months" if value < 10 else f"{value:.0f} months"


def months_range(low: float | None, high: float | None) -> str:
    """Two ends of a span, the unit once: 3.3 to 25 months."""
    first, last = months(low), months(high)
    return last if first == last else f"{first.removesuffix(' months') if last.endswith(' months') else first} to {last}"


def volume(value: float | None) -> str:
    """A break-even volume; None means that none exists."""
    if value is None:
        return "none"
    return count(float(f"{value:.3g}"))


def pair(low: str, high: str) -> str:
    """Two ends of a range, or one figure where both read the same."""
    return low if low == high else f"{low} to {high}"


def plain(name: str) -> str:
    """A metric's name as words: exact_match becomes "exact match"."""
    return name.replace("_", " ")


def model_name(name: str) -> str:
    """A model as people name it: of a model in a folder of this machine only the folder's own name."""
    return f"tuned here ({name.rstrip('/').rpartition('/')[2]})" if name.startswith("local:") else name


def file_name(path: str) -> str:
    """The file's own name: a folder of one machine says nothing to a reader."""
    return path.replace("\\", "/").rpartition("/")[2] or path


FILTERS = {
    function.__name__: function
    for function in (
        usd, usd_range, count, count_range, percent, probability, interval, points, points_interval, p_value, months,
        months_range, volume, plain, pair, model_name, file_name,
    )
}  # fmt: skip
"""What the templates may call."""
