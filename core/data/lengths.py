"""Sets the rows' lengths and number against what each provider takes, from the catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneport.core.catalogue import Offering
from tuneport.core.data.check_report import Quantile, VendorFit
from tuneport.core.data.split import Part
from tuneport.core.spec import PREFERENCE_METHODS, Method

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARES = (0.5, 0.9, 0.99, 1.0)


def quantiles(low: NDArray[np.float32], high: NDArray[np.float32]) -> tuple[Quantile, ...]:
    """The distribution of row lengths."""
    if not high.size:
        return ()
    lows, highs = (np.quantile(values, SHARES, method="higher") for values in (low, high))
    ranges = zip(SHARES, np.floor(lows), np.ceil(highs), strict=True)
    return tuple(Quantile(share=share, low=int(one), high=int(two)) for share, one, two in ranges)


def vendor_fits(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    *,
    rows: int,
    bad: int,
    path: str | None,
    part: Part,
    method: Method,
    offerings: Iterable[Offering],
) -> tuple[VendorFit, ...]:
    """One entry for each provider and set of limits; models with the same limits stand together.

    ``low`` and ``high`` bound the tokens of each row (empty: not counted). ``rows`` counts the good ones, ``bad`` the others.
    Limits on rows and size are for the train and validation parts, never for the test.
    """
    groups: dict[tuple[Any, ...], list[Offering]] = {}
    for offering in offerings:
        groups.setdefault((offering.provider, *_limits(offering, method, part)), []).append(offering)
    size = Path(path).stat().st_size / 1e6 if path else None
    ordered = sorted(groups.items(), key=lambda item: str(item[0]))
    return tuple(_fit(key, offerings, low, high, rows, "good " if bad else "", size, part) for key, offerings in ordered)


def _limits(offering: Offering, method: Method, part: Part) -> tuple[int | None, bool, int | None, int | None, float | None]:
    """(most tokens of a training row, whether that is only the model's context, fewest rows, most rows, most megabytes)."""
    limits = offering.limits
    name = "max_seq_length_dpo" if method in PREFERENCE_METHODS else "max_seq_length_sft"
    known = [value for key in ("max_row_tokens", name) if (value := limits.get(key)) is not None]
    tokens = min(known) if known else offering.context
    most = limits.get("max_rows_rft" if method == "rft" else "max_rows")
    space = limits.get("max_train_mb" if part == "train" else "max_validation_mb")
    return tokens, not known and tokens is not None, limits.get("min_rows"), most, space


def _fit(
    key: tuple[Any, ...], offerings: list[Offering], low: Any, high: Any, rows: int, good: str, size: float | None, part: Part
) -> VendorFit:
    provider, tokens, is_context, least, most, space = key
    problems = []
    if part == "train" and least is not None and rows < least:
        problems.append(f"{rows:,} {good}row{'' if rows == 1 else 's'}; at least {least:,} are needed")
    if part == "train" and most is not None and rows > most:
        problems.append(f"{rows:,} {good}rows; at most {most:,} are taken")
    if part != "test" and space is not None and size is not None and size > space:
        problems.append(f"{size:,.0f} MB; at most {space:,.0f} are taken")
    surely, perhaps = (int(np.count_nonzero(values > tokens)) if tokens else 0 for values in (low, high))
    if perhaps:
        count = f"{surely:,}" if surely == perhaps else f"{surely:,} to {perhaps:,}"
        exceed = "row exceeds" if perhaps == 1 else "rows exceed"
        problems.append(f"{count} {exceed} {tokens:,} tokens and would be cut or refused")
    source = offerings[0].limits_source or offerings[0].source
    return VendorFit(
        provider=provider,
        models=tuple(sorted(offering.model for offering in offerings)),
        max_tokens=tokens,
        limit_is_context=is_context,
        surely_over=surely,
        perhaps_over=perhaps,
        min_rows=least,
        max_rows=most,
        max_mb=space,
        problems=tuple(problems),
        source=str(source) if source else "",
    )
