"""Exactly one job, whatever goes wrong at any step, wherever the client is killed."""
# ruff: noqa: S101 -- these are tests

from __future__ import annotations

import os
from contextlib import suppress
from queue import SimpleQueue
from random import Random

from tuneport.core.errors import TuneportError
from tuneport.providers.conformance.bench import Bench, Conformance
from tuneport.providers.conformance.faults import Fault, kill, lost_replies, slow, unheard_requests
from tuneport.providers.conformance.forks import Forked
from tuneport.providers.conformance.process import start

SEQUENCES = int(os.environ.get("TUNEPORT_CONFORMANCE_SEQUENCES", "12"))
"""Random sequences of faults; each is a handful of real requests, about 0.1 s."""


class ExactlyOnce(Conformance):
    """Faults, timeouts, kills, late lists, wrong clocks."""

    def test_exactly_one_job_whatever_goes_wrong_at_any_step(self, bench: Bench, step: str, fault: Fault) -> None:
        bench.vendor.fault(step, fault)
        if step == "list":  # it is used when an answer was lost
            bench.vendor.fault("create", lost_replies()[0])
        with suppress(TuneportError):
            bench.submit()
        bench.engine.reconcile(resume=True)
        bench.assert_one_job()
        assert bench.engine.reconcile(resume=True) == []

    def test_a_timeout_after_the_vendor_accepted_makes_no_second_job(self, bench: Bench) -> None:
        bench.options |= self.hasty_options
        bench.vendor.fault("create", slow(2.0))
        with suppress(TuneportError):
            bench.submit()
        bench.engine.reconcile(resume=True)
        bench.assert_one_job()

    def test_kill_9_between_any_two_steps_then_reconcile(self, bench: Bench, step: str, after: bool) -> None:
        clients: SimpleQueue[Forked] = SimpleQueue()
        reached: list[str] = []

        def strike() -> None:
            reached.append(step)  # before the kill, so that whoever waits for the process's end finds it here
            clients.get().kill()

        bench.vendor.fault(step, kill(strike, after=after))
        client = start(self.client, bench.folder, bench.spec, bench.plan, bench.vendor.environment)
        clients.put(client)
        _, printed = client.communicate(timeout=60)
        assert client.returncode == (-9 if reached else 0), printed
        bench.vendor.calm()
        bench.engine.reconcile(resume=True)
        bench.assert_one_job()
        assert self.vendor_class.secret.encode() not in bench.stored_bytes()

    def test_a_job_that_the_list_shows_late_is_adopted_not_repeated(self, bench: Bench) -> None:
        bench.vendor.list_lag = 4
        bench.vendor.fault("create", lost_replies()[0])
        with suppress(TuneportError):
            bench.submit()
        bench.engine.reconcile(resume=True)
        bench.assert_one_job()
        assert bench.vendor.calls("list") > 4

    def test_a_wrong_clock_loses_no_job(self, bench: Bench) -> None:
        for number, skew in enumerate(self.skews, start=1):
            bench.vendor.skew_seconds = skew.total_seconds()
            bench.vendor.fault("create", lost_replies()[0])
            bench.submit()  # adopted at once, since the list shows it
            assert len(bench.vendor.made) == number
            assert {self.ref_of(made.ref) for made in bench.vendor.made} == {record.ref for record in bench.ledger.latest()}

    def test_jobs_of_others_are_never_adopted(self, bench: Bench) -> None:
        bench.made_by_hand("tp-aaaaaa-aaaaaaaa")
        provider = bench.provider
        assert provider.find(bench.plan, "tp-aaaaaa-aaaaaaab") is None
        found = provider.find(bench.plan, "tp-aaaaaa-aaaaaaaa")
        assert found is not None and found.ref == self.ref_of(bench.vendor.made[0].ref)

    def test_random_faults_leave_no_duplicate_and_no_orphan(self, bench: Bench) -> None:
        random, faults = Random(20261122), (*lost_replies(), *unheard_requests())  # noqa: S311 -- a reproducible choice
        for number in range(1, SEQUENCES + 1):
            for nth in range(1, 13):
                if random.random() < 0.4:
                    bench.vendor.fault("*", random.choice(faults), nth)
            with suppress(TuneportError):
                bench.submit()
            if random.random() < 0.5:
                bench.engine.reconcile(resume=True)
            bench.vendor.calm()
            bench.engine.reconcile(resume=True)
            made, recorded = bench.vendor.made, bench.ledger.latest(limit=None)
            assert len(made) == number == len({entry.body and entry.ref for entry in made}), "a job was made twice, or lost"
            assert {self.ref_of(entry.ref) for entry in made} == {record.ref for record in recorded}, "an orphan"
