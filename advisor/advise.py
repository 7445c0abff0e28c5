"""The advisor's entry: from the intake, what was measured and the plans to the decision report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Measurement
from tuneport.advisor.report.build import build_report
from tuneport.advisor.report.model import Report
from tuneport.advisor.runs import RunFamily
from tuneport.core.plan import Plan


def advise(
    intake: Intake,
    measurement: Measurement | None,
    plans: Sequence[Plan],
    *,
    today: date,
    seed: int = 0,
    tuned_from: Mapping[str, str] | None = None,
    unavailable: Mapping[str, str] | None = None,
    families: Sequence[RunFamily] = (),
    notes: Sequence[str] = (),
    spec_file: str = "",
) -> Report:
    """Whether and where to fine-tune. Money is USD; ``seed`` fixes the draws, so the same inputs give the same report.

    ``plans`` are the offers, one for each place that could train. ``tuned_from`` maps the name of a tuned arm to its base model;
    without it the base is that of the plan at the arm's provider. ``unavailable`` says of providers without a plan why there is none.
    ``families`` are runs of the ledger on shares of the data, for the learning curve;
    ``notes`` are further warnings of the report. ``spec_file`` is the spec's path, for the commands that the report names.
    Raises CatalogueError when a price or catalogue file is faulty.
    """
    return build_report(
        intake, measurement, plans, today=today, seed=seed, tuned_from=tuned_from, unavailable=unavailable, families=families,
        notes=notes, spec_file=spec_file,
    )  # fmt: skip
