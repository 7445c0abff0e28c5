"""Estimates beside bills: what is stored, what is shown, and what the next estimate learns from it."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.calibration import COVERAGE, Calibration, calibrated, learn, midpoint, totals
from tuneport.core.errors import BudgetError
from tuneport.core.estimate import tokens_bill
from tuneport.core.job import JobState, RemoteJob
from tuneport.core.money import AT_MINIMUM, Cost, CostLine, Range
from tuneport.core.spec import Budget, Data, JobSpec
from tuneport.tests.engine_bench import Bench
from tuneport.tests.fake_provider import make_plan, make_spec

RATIO = st.floats(0.05, 20)


def cost(low: float, high: float, basis: str = "1M tokens x 1 USD per 1M tokens") -> Cost:
    return Cost(lines=(CostLine(item="training", usd=Range(low=low, high=high), basis=basis),))


# The rule


@pytest.mark.parametrize("ratios", [[], [1.0], [1.0, 3.0]])
def test_two_bills_teach_nothing(ratios: list[float]) -> None:
    assert learn("fake", ratios) is None
    assert calibrated(cost(1, 2), None) == cost(1, 2)


@pytest.mark.parametrize(
    ("n", "low", "high", "coverage"),
    [(3, 1, 3, 0.5), (8, 1, 8, 7 / 9), (9, 1, 9, 0.8), (18, 1, 18, 17 / 19), (19, 2, 18, 0.8), (100, 10, 91, 81 / 101)],
)
def test_the_quantiles_are_those_of_wilks(n: int, low: int, high: int, coverage: float) -> None:
    found = learn("fake", [float(number) for number in range(n, 0, -1)])
    assert found is not None
    assert (found.bills, found.low, found.high) == (n, low, high)
    assert found.coverage == pytest.approx(coverage)


def test_the_stated_coverage_holds_for_any_distribution() -> None:
    import random

    draw = random.Random(7)
    for n in (9, 19, 40):
        inside = 0
        for _ in range(4000):
            found = learn("fake", [draw.lognormvariate(0.3, 0.8) for _ in range(n)])
            assert found is not None
            inside += found.low <= draw.lognormvariate(0.3, 0.8) <= found.high
        expected = learn("fake", [1.0] * n)
        assert expected is not None
        assert inside / 4000 == pytest.approx(expected.coverage, abs=0.03)


def test_few_bills_move_and_widen_a_range_but_do_not_narrow_it() -> None:
    found = calibrated(cost(1, 3), learn("fake", [1.5, 1.5, 1.5])).usd
    assert found == Range(low=1.5, high=4.5)
    wider = calibrated(cost(1, 3), learn("fake", [0.4, 1.5, 2.6])).usd
    assert wider is not None
    assert (wider.low, wider.high) == pytest.approx((0.8, 5.2))


def test_many_bills_may_narrow_it_too() -> None:
    found = calibrated(cost(1, 3), learn("fake", [1.2] * 9)).usd
    assert found is not None
    assert (found.low, found.high) == pytest.approx((2.4, 2.4))


def test_the_basis_names_the_number_of_bills() -> None:
    (line,) = calibrated(cost(1, 3), learn("fake", [1.2] * 5)).lines
    assert "n=5 bills at fake" in line.basis
    assert "from 1.00 to 3.00 USD" in line.basis


@given(ratios=st.lists(RATIO, min_size=3, max_size=60), low=st.floats(0, 1e4), width=st.floats(0, 1e4))
def test_a_calibrated_range_is_a_range_and_stays_when_repeated(ratios: list[float], low: float, width: float) -> None:
    by = learn("fake", ratios)
    assert by is not None
    assert by.low <= by.median <= by.high
    once = calibrated(cost(low, low + width), by)
    assert once.usd is not None
    assert calibrated(once, by) == once
    middle = low + width / 2
    assert once.usd.low <= middle * by.low * (1 + 1e-9) + 1e-9
    assert once.usd.high >= middle * by.high * (1 - 1e-9) - 1e-9
    if by.coverage >= COVERAGE:
        assert once.usd.low == pytest.approx(middle * by.low)


def test_unknown_free_and_minimum_charges_stay_as_they_are() -> None:
    by = learn("fake", [2.0] * 9)
    unknown = Cost(lines=(CostLine(item="training", usd=None, basis="no price"),))
    for one in (unknown, cost(0, 0), cost(4, 4, f"100 tokens x 1 USD; {AT_MINIMUM} of 4 USD per job")):
        assert calibrated(one, by) == one


# The ledger


class Billed(Bench):
    """Every job is billed at a multiple of the midpoint of its plan."""

    def job(self, usd: Range | None, ratio: float | None = None, **said: object) -> str:
        job = self.engine.submit(self.spec, make_plan(self.spec, usd))
        bill = None if ratio is None or usd is None else ratio * midpoint(usd)
        assert job.ref is not None
        done = RemoteJob(job.ref, JobState.SUCCEEDED, "done", billed_usd=bill, tuned_model="m", **said)  # type: ignore[arg-type]
        self.ledger.observe(job.id, done)
        return job.id


@pytest.fixture
def bench(tmp_path: Path) -> Billed:
    return Billed(tmp_path)


def test_each_job_shows_its_estimate_its_bill_and_the_error(bench: Billed) -> None:
    inside = bench.job(Range(low=1, high=3), 1.25)
    outside = bench.job(Range(low=1, high=3), 2)
    unbilled = bench.job(Range(low=1, high=3))
    unknown = bench.job(None, billed_tokens=1200)
    found = {one.job_id: one for one in bench.engine.costs()}
    assert (found[inside].billed, found[inside].inside) == (Range(low=2.5, high=2.5), True)
    assert found[inside].error == pytest.approx(0.25)
    assert found[inside].basis == "billed by fake"
    assert (found[outside].error, found[outside].inside) == (pytest.approx(1.0), False)
    assert (found[unbilled].billed, found[unbilled].error, found[unbilled].inside) == (None, None, None)
    assert found[unbilled].basis == "fake has reported no bill"
    assert (found[unknown].estimate, found[unknown].billed, found[unknown].billed_tokens) == (None, None, 1200)
    assert "1,200 tokens billed" in found[unknown].basis
    (total,) = totals(list(found.values()))
    assert (total.provider, total.jobs, total.compared, total.inside) == ("fake", 4, 2, 1)
    assert (total.estimate, total.billed) == (Range(low=2, high=6), Range(low=6.5, high=6.5))
    assert total.error == pytest.approx(0.625)
    assert totals([]) == []


def test_the_next_estimate_learns_from_the_bills_and_the_ledger_keeps_both(bench: Billed) -> None:
    for ratio in (1.4, 1.5, 1.6):
        bench.job(Range(low=1, high=3), ratio)
    by = bench.engine.calibration("fake")
    assert by is not None
    assert (by.bills, by.median) == (3, 1.5)
    record = bench.ledger.get(bench.job(Range(low=1, high=3), 1.5))
    assert record.planned_usd == Range(low=1, high=3)
    assert record.estimate_usd == Range(low=1.5, high=4.5)
    assert bench.ledger.plan(record.id).cost.usd == Range(low=1, high=3)
    again = bench.engine.calibration("fake")
    assert again is not None
    assert (again.bills, again.median) == (4, pytest.approx(1.5))  # corrections do not feed on themselves
    assert bench.engine.calibration("other") is None


def test_only_whole_jobs_with_a_known_estimate_teach(bench: Billed) -> None:
    for _ in range(2):
        bench.job(Range(low=1, high=3), 1.5)
    bench.job(None, billed_tokens=900)
    bench.job(Range(low=0, high=0), 1.0)
    cancelled = bench.engine.submit(bench.spec, bench.plan)
    assert cancelled.ref is not None
    bench.ledger.observe(cancelled.id, RemoteJob(cancelled.ref, JobState.CANCELLED, "stopped", billed_usd=0.1))
    assert bench.engine.calibration("fake") is None


def test_the_latest_hundred_bills_count(bench: Billed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneport.core.accounts.LATEST_BILLS", 4)
    for ratio in (9, 9, 9, 1, 1, 1, 1):
        bench.job(Range(low=1, high=3), ratio)
        bench.clock.sleep(60)
    by = bench.engine.calibration("fake")
    assert by is not None
    assert (by.bills, by.high) == (4, 1)


def test_the_budget_is_held_against_the_corrected_estimate(bench: Billed) -> None:
    for _ in range(3):
        bench.job(Range(low=1, high=3), 2)
    spec = make_spec(bench.folder, budget=Budget(max_usd=5))
    with pytest.raises(BudgetError, match=r"up to 6\.00 USD"):
        bench.engine.submit(spec, make_plan(spec, Range(low=1, high=3)))


def test_tokens_that_are_billed_without_a_price_are_priced_by_the_price_book() -> None:
    spec = JobSpec(model={"openai": "gpt-4.1-mini-2025-04-14"}, data=Data(train="t.jsonl"))
    line = tokens_bill("openai", spec, 2_000_000, date(2026, 11, 22))
    assert line is not None
    assert line.usd is not None
    half = tokens_bill("openai", spec, 1_000_000, date(2026, 11, 22))
    assert half is not None
    assert half.usd is not None
    assert line.usd.low == pytest.approx(2 * half.usd.low) and line.usd.low > 0
    assert "2M tokens x" in line.basis
    assert tokens_bill("local", spec, 5, date(2026, 11, 22)) is None


def test_billed_tokens_stand_beside_their_price(bench: Billed) -> None:
    spec = make_spec(bench.folder).model_copy(update={"model": {"openai": "gpt-4.1-mini-2025-04-14"}, "method": "sft"})
    plan = make_plan(spec, Range(low=9, high=11)).model_copy(update={"provider": "openai"})
    job = bench.engine.submit(spec, plan)
    assert job.ref is not None
    bench.ledger.observe(job.id, RemoteJob(job.ref, JobState.SUCCEEDED, "succeeded", billed_tokens=2_000_000, tuned_model="m"))
    (one,) = bench.engine.costs()
    assert one.billed is not None
    assert one.billed.low == one.billed.high > 0
    assert "USD per 1M" in one.basis
    assert one.error is not None


def test_a_calibration_reads_as_a_sentence() -> None:
    by = Calibration("together", 12, 1.1, 0.8, 1.6, 11 / 13)
    assert str(by).startswith("x 0.80 to 1.60, median 1.10, as n=12 bills at together")
