"""What a report takes for granted, and what may go wrong."""

from __future__ import annotations

from datetime import date

from tuneport.advisor.economics import remaining_days
from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Measurement
from tuneport.advisor.offers import Offer
from tuneport.advisor.pricing import Side
from tuneport.advisor.prior import Prior
from tuneport.advisor.report.model import Assumption, Risk
from tuneport.advisor.report.words import count_range, percent, usd_range
from tuneport.core.catalogue import Offering
from tuneport.core.money import Range
from tuneport.core.spec import Section

STATED = "stated in the decision file"
UNSTATED = "not stated in the decision file"
DEFAULT = "tuneport's default; the decision file says nothing of it"


def assumptions_of(
    intake: Intake, offer: Offer | None, now: Side, incumbent: Offering | None, prior: Prior
) -> tuple[Assumption, ...]:
    """Every figure that the money rests on, with source, date and grade."""

    def share(value: Range) -> str:
        return percent(value.low, 0) if value.low == value.high else f"{percent(value.low, 0)} to {percent(value.high, 0)}"

    tokens, costs, every = intake.tokens, intake.costs, intake.retraining.every_months
    seasons = "twelve weights: " + ", ".join(f"{w:g}" for w in intake.seasonality) if intake.seasonality else "none"
    figures: list[tuple[str, str, str]] = [
        ("volume_per_month", "Requests per month", count_range(intake.volume_per_month)),
        ("volume_growth_per_year", "Growth of the volume per year", share(intake.volume_growth_per_year)),
        ("seasonality", "Seasons", seasons),
        ("batch_share", "Share of requests that can wait for a batch tier", share(intake.batch_share)),
        ("open_hours_per_month", "Hours of a month in which requests arrive", count_range(intake.open_hours_per_month)),
        ("tokens.static", "Static prompt tokens, today", count_range(tokens.static)),
        ("tokens.static_tuned", "Static prompt tokens, after tuning", count_range(tokens.static_tuned)),
        ("tokens.fresh", "Fresh input tokens", count_range(tokens.fresh)),
        ("tokens.output", "Answer tokens", count_range(tokens.output)),
        ("cache_hit_share", "Cache-hit share of the static prompt, today", share(intake.cache_hit_share)),
        ("cache_hit_share_tuned", "Cache-hit share, after tuning", share(intake.cache_hit_share_tuned)),
        ("costs.data_usd", "Data, one-time", usd_range(costs.data_usd)),
        ("costs.labelling_usd", "Labelling, one-time", usd_range(costs.labelling_usd)),
        ("costs.engineering_usd", "Engineering, one-time", usd_range(costs.engineering_usd)),
        ("costs.evaluation_usd", "Evaluation, one-time", usd_range(costs.evaluation_usd)),
        ("costs.incumbent_move_usd", "Moving when today's model ends, one-time", _or_not_counted(costs.incumbent_move_usd)),
        ("costs.monitoring_usd_per_month", "Monitoring per month", usd_range(costs.monitoring_usd_per_month)),
        ("runs.planned", "Training runs until one is kept", f"{intake.runs.planned} planned"),
        ("runs.failure_share", "Share of runs that fail and are paid for", percent(intake.runs.failure_share, 0)),
        ("retraining.every_months", "Retraining", f"every {every:g} months" if every else "never"),
        ("quality.rejected_answer_usd", "Cost of one answer that misses", usd_range(intake.quality.rejected_answer_usd)),
        ("discount_rate", "Discount rate per year", percent(intake.discount_rate, 0)),
        ("horizon_months", "Horizon", f"{intake.horizon_months} months"),
        ("machine_price_drift_per_year", "Change of hourly machine prices per year", share(intake.machine_price_drift_per_year)),
    ]
    found = [Assumption(what=what, value=value, source=_source(intake, path)) for path, what, value in figures]
    offered = [n.model_copy(update={"item": f"{n.item} ({offer.provider})"}) for n in offer.prices] if offer else []
    found += [
        Assumption(
            what=p.item[:1].upper() + p.item[1:],
            value=f"{usd_range(p.usd)} {p.unit}".strip(),
            source=p.source + (f"; {p.note}" if p.note else ""),
            observed_on=p.observed_on,
            grade=p.grade,
            stale=p.stale,
        )
        for p in (*now.notes, *offered)
    ]
    found += [Assumption(what="Note on today's model", value=note, source="derived by tuneport", grade="R") for note in now.remarks]
    if offer:
        found.append(Assumption(what="One training run", value=usd_range(offer.training_usd), source=offer.training_basis, grade="R"))
        found += [Assumption(what="Note on the offer", value=note, source="derived by tuneport", grade="R") for note in offer.notes]
    found.append(
        Assumption(
            what="Misses that tuning removes, before a tuned model is measured",
            value=f"{percent(prior.removed.low, 0)} to {percent(prior.removed.high, 0)} ({prior.why})",
            source=prior.source.title, observed_on=prior.source.observed_on, grade=prior.source.grade,
        )
    )  # fmt: skip
    if intake.costs.migration_usd is None:
        found.append(
            Assumption(
                what="Cost of moving at the model's end", value="engineering plus evaluation again", source="tuneport's default", grade="R"
            )
        )
    if incumbent is not None and incumbent.lifetime.inference_ends:
        found.append(
            Assumption(
                what="Today's model after its end",
                value="a successor at the same price and quality",
                source="assumed; nobody knows",
                grade="K",
            )
        )
    found.append(
        Assumption(
            what="How pairs are read",
            value="10th and 90th percentile of a lognormal; prices triangular, widened by 10 % (grade M) or 25 % (weaker)",
            source="tuneport's model",
            grade="R",
        )
    )
    return tuple(found)


def _source(intake: Intake, path: str) -> str:
    """Who says so: the decision file, tuneport where that leaves the field out, or nobody."""
    section: Section = intake
    *parts, name = path.split(".")
    for part in parts:
        section = getattr(section, part)
    if getattr(section, name) is None and name != "every_months":  # without a cadence nothing is retrained
        return UNSTATED
    return STATED if name in section.model_fields_set else DEFAULT


def _or_not_counted(value: Range | None) -> str:
    return "not counted" if value is None else usd_range(value)


def risks_of(
    intake: Intake, offer: Offer | None, incumbent: Offering | None, measurement: Measurement | None, today: date
) -> tuple[Risk, ...]:
    """What may go wrong whatever the averages say, and the answer to it."""
    risks: list[Risk] = []
    if incumbent is not None and (ends := incumbent.lifetime.inference_ends):
        risks.append(
            Risk(
                name="End of today's model",
                statement=f"{incumbent.provider} ends {incumbent.vendor_id} on {ends} ({remaining_days(ends, today)} days from now).",
                answer="A move is due whatever is decided here; measure the successor as one more arm.",
            )
        )
    if offer is not None and offer.inference_ends:
        risks.append(
            Risk(
                name="End of the base model",
                statement=f"Every model tuned from {offer.model} at {offer.provider} ends on {offer.inference_ends} "
                f"({remaining_days(offer.inference_ends, today)} days from now).",
                answer="Money is counted up to that day only, and the move is priced.",
            )
        )
    elif offer is not None and offer.provider != "local":
        risks.append(
            Risk(
                name="End of the base model",
                statement=f"No end of {offer.model} at {offer.provider} is known; vendors retire models at a few months' notice.",
                answer="Keep data, spec and suite portable: the same job runs elsewhere.",
            )
        )
    if offer is not None and offer.provider != "local":
        risks.append(
            Risk(
                name="Lock-in",
                statement=f"The tuned model may serve only at {offer.provider}.",
                answer="Prefer open weights that can be downloaded, where quality allows.",
            )
        )
    if intake.privacy.regulations:
        risks.append(
            Risk(
                name="Regulation",
                statement=f"{', '.join(intake.privacy.regulations)} bind{'s' if len(intake.privacy.regulations) == 1 else ''}; tuneport "
                "cannot judge whether an offer complies.",
                answer="Have the processing agreement, the place of processing and the deletion of rows checked before any upload.",
            )
        )
    risks.append(
        Risk(
            name="Rights in the data",
            statement="tuneport cannot see whether the rows may be used for training.",
            answer="Have licence and personal data checked before the upload (tuneport check).",
        )
    )
    risks.append(
        Risk(
            name="Drift",
            statement=f"Facts or requirements change {intake.facts.change}; a tuned model stands still until it is retrained.",
            answer="Measure fresh rows each month and run tuneport evaluate on them.",
        )
    )
    if measurement is not None:
        risks.append(
            Risk(
                name="The suite is not the world",
                statement=f"{len(measurement.arms[0].answers):,} rows from one time and source. "
                f"{measurement.power.statement.removesuffix('.')}.",
                answer="Repeat on rows from a later time before relying on the gain.",
            )
        )
    return tuple(risks)
