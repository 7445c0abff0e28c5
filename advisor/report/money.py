"""The money of one offer in rows: what each figure is, and how the likely one comes about."""

from __future__ import annotations

from dataclasses import dataclass

from tuneport.advisor.breakdown import Breakdown
from tuneport.advisor.offers import OfferEconomics, Percentiles
from tuneport.advisor.report.model import Report
from tuneport.advisor.report.words import MINUS, count, months, months_range, pair, percent, usd, usd_range, volume


@dataclass(frozen=True, slots=True)
class MoneyRow:
    """One figure, with P10 to P90 of that figure by itself."""

    name: str
    likely: str
    span: str


@dataclass(frozen=True, slots=True)
class MonthRow:
    """One line of an average month in the likely case."""

    name: str
    today: str
    tuned: str


def money_rows(report: Report) -> list[MoneyRow]:
    """The table of part 2; empty where no offer is priced."""
    money = report.savings.economics
    if money is None:
        return []
    likely, horizon = money.likely, months(money.months)
    rate = report.intake.discount_rate
    discounted = f", discounted at {percent(rate, 0 if rate * 100 == round(rate * 100) else 1)} a year" if rate else ""
    each = ", its share of wrong answers included" if money.misses_counted else ", calls only"

    def row(name: str, middle: float | None, spread: Percentiles) -> MoneyRow:
        return MoneyRow(name, usd(middle), pair(usd(spread.p10), usd(spread.p90)))

    back, needed = money.payback_months, money.break_even_volume
    return [
        row(f"Net present value over {horizon}{discounted}", likely.npv, money.npv),
        row("Saved per month, after hosting and retraining", likely.saved_per_month, money.saving_per_month),
        row("Spent once, before the first request", likely.spent_once, money.one_time),
        MoneyRow("Paid back after", months(likely.payback_months), months_range(back.p10, back.p90)),
        MoneyRow(
            f"Requests per month that pay it back within {horizon}",
            volume(likely.break_even_volume),
            pair(volume(needed.p10), volume(needed.p90)),
        ),
        row(f"One request today{each}", likely.per_request_today, money.per_request_today),
        row(f"One request, fine-tuned{each}", likely.per_request_tuned, money.per_request_tuned),
        row("Fixed cost per month beyond today's: machines, storage, monitoring", likely.fixed_per_month, money.fixed_per_month),
    ]


def month_rows(report: Report) -> list[MonthRow]:
    """An average month of the likely case, line by line; lines that are nothing on both sides are left out."""
    money = report.savings.economics
    if money is None:
        return []
    now, then = money.likely.today, money.likely.tuned
    priced = report.intake.quality.rejected_answer_usd
    lines = (
        ("Calls and machine time", now.calls, then.calls),
        ("Machines by the hour", now.machines, then.machines),
        (f"Answers that miss, {usd_range(priced)} each", now.misses, then.misses),
        ("Storage and monitoring", now.upkeep, then.upkeep),
        ("Retraining", now.retraining, then.retraining),
    )
    rows = [MonthRow(name, usd(one), usd(two)) for name, one, two in lines if one or two]
    return [*rows, MonthRow("A month altogether", usd(now.total), usd(then.total))]


def sum_of(money: OfferEconomics | None) -> str:
    """The sentence that leads from an average month to the net present value; "" where no offer is priced."""
    if money is None:
        return ""
    likely = money.likely
    moved = _signed(likely.moves, "for the move when a base model ends")
    later = _signed(likely.discounting, "because later money is discounted")
    return (
        f"{usd(likely.today.total)} {MINUS} {usd(likely.tuned.total)} = {usd(likely.saved_per_month)} saved a month. "
        f"{usd(likely.saved_per_month)} × {months(likely.months)} {MINUS} {usd(likely.spent_once)} spent once{moved}{later} = "
        f"{usd(likely.npv)} net present value."
    )


def basis_of(money: OfferEconomics | None, draws: int) -> str:
    """What "likely" and P10 to P90 are."""
    if money is None:
        return ""
    return (
        f"Likely: the mean of the {count(money.likely.draws)} draws in the middle of {draws:,} by net present value, so its lines add up. "
        "P10 to P90: of each line by itself, so these do not. Only the net present value is discounted."
    )


def volume_of(likely: Breakdown) -> str:
    """The requests of an average month in the likely case."""
    return count(float(f"{likely.requests_per_month:.3g}"))


def _signed(value: float, why: str) -> str:
    return "" if not value else f" {MINUS if value < 0 else '+'} {usd(abs(value))} {why}"
