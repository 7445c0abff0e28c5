"""What has changed from one report to the next: the decision first, then what moved it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tuneport.advisor.offers import Offer, Percentiles
from tuneport.advisor.report.model import Report
from tuneport.advisor.report.words import interval, months, months_range, pair, plain, probability, usd, usd_range
from tuneport.core.errors import DataError

ABSENT = "–"
Part = Literal["decision", "money", "quality", "rules", "offers", "inputs"]


class Change(BaseModel):
    """One thing that differs, in the report's words."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    part: Part
    what: str
    before: str
    after: str


class ReportComparison(BaseModel):
    """Every difference of two reports, most important first. ``same_inputs``: only time or the program has changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1] = 1
    before: str
    after: str
    same_verdict: bool
    same_inputs: bool
    changes: tuple[Change, ...]


def load_report(path: str | Path) -> Report:
    """A report.json. Raises DataError when it cannot be read or is none."""
    try:
        return Report.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", fix="give the path of a report.json") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise DataError(
            f"{path} is no report of this version: {where}: {first['msg']}", fix="run `tuneport advise` again to make a report.json"
        ) from None


def compare_reports(before: Report, after: Report) -> ReportComparison:
    """The differences of two reports, whichever decision they are about."""
    changes = [change for part in (_decision, _money, _quality, _rules, _offers, _inputs) for change in part(before, after)]
    return ReportComparison(
        before=f"{before.title}, {before.made_on}",
        after=f"{after.title}, {after.made_on}",
        same_verdict=before.decision.verdict == after.decision.verdict,
        same_inputs=before.reproducibility.inputs_sha256 == after.reproducibility.inputs_sha256,
        changes=tuple(changes),
    )


def _differs(part: Part, old: dict[str, str], new: dict[str, str]) -> Iterator[Change]:
    for what in dict.fromkeys([*old, *new]):
        one, two = old.get(what, ABSENT), new.get(what, ABSENT)
        if one != two:
            yield Change(part=part, what=what, before=one, after=two)


def _decision(before: Report, after: Report) -> Iterator[Change]:
    def read(report: Report) -> dict[str, str]:
        d = report.decision
        return {
            "verdict": plain(d.verdict),
            "confidence": d.confidence,
            "sentence": d.sentence,
            "offer": d.offer or ABSENT,
            "method": d.method.name,
            "diagnosis": report.diagnosis.gap,
        }

    return _differs("decision", read(before), read(after))


def _money(before: Report, after: Report) -> Iterator[Change]:
    def read(report: Report) -> dict[str, str]:
        money = report.savings.economics
        if money is None:
            return {"net present value": "unknown"}
        back = money.payback_months
        return {
            "offer that is priced": report.savings.offer or ABSENT,
            "net present value": _usd(money.likely.npv, money.npv),
            "saved per month": _usd(money.likely.saved_per_month, money.saving_per_month),
            "spent once": _usd(money.likely.spent_once, money.one_time),
            "payback": f"{months(money.likely.payback_months)} ({months_range(back.p10, back.p90)})",
            "chance of saving money": probability(money.p_saves),
        }

    return _differs("money", read(before), read(after))


def _usd(likely: float, spread: Percentiles) -> str:
    """A figure of money as the report shows it."""
    return f"{usd(likely)} ({pair(usd(spread.p10), usd(spread.p90))})"


def _quality(before: Report, after: Report) -> Iterator[Change]:
    def read(report: Report) -> dict[str, str]:
        evidence = report.evidence
        curve = {"learning curve": report.curve.says} if report.curve else {}
        if evidence is None:
            return curve
        metric = evidence.metric
        scores = {f"{a.name}, {plain(metric)}": interval(a.metrics[metric]) for a in evidence.arms if metric in a.metrics}
        return {"test rows": f"{evidence.rows} ({evidence.suite_sha256[:8]})", **scores, **curve}

    return _differs("quality", read(before), read(after))


def _rules(before: Report, after: Report) -> Iterator[Change]:
    def read(report: Report) -> dict[str, str]:
        words = {True: "holds", False: "does not hold", None: "not known"}
        return {line.says: words[line.fired] for line in (*report.decision.trace, *report.decision.doubts)}

    old, new = read(before), read(after)
    shared = [k for k in old if k in new and "holds" in (old[k], new[k])]  # from unknown to untrue, nothing was learnt that counts
    return _differs("rules", {k: old[k] for k in shared}, {k: new[k] for k in shared})


def _offers(before: Report, after: Report) -> Iterator[Change]:
    def read(offer: Offer) -> str:
        money = _usd(offer.economics.likely.npv, offer.economics.npv) if offer.economics else "money unknown"
        return f"{offer.status}; one run {usd_range(offer.training_usd)}; {money}"

    return _differs("offers", {o.id: read(o) for o in before.offers}, {o.id: read(o) for o in after.offers})


def _inputs(before: Report, after: Report) -> Iterator[Change]:
    def read(report: Report) -> dict[str, str]:
        stated = {a.what: f"{a.value} ({a.source})" for a in report.assumptions if not a.what.startswith("Note on ")}
        return {
            **stated,
            "seed": str(report.reproducibility.seed),
            **{f"version of {k}": v for k, v in report.reproducibility.versions.items()},
        }

    return _differs("inputs", read(before), read(after))
