"""The tests that every provider must pass, against a fake vendor that speaks the real wire format.

    pytest.register_assert_rewrite("tuneport.providers.conformance")  # in conftest.py

    class TestAcme(ProviderConformance):
        target = "acme_tuneport.client:AcmeProvider"
        vendor_class = AcmeVendor
        states = STATES
        records = RECORDS
        sdk_modules = ("acme",)
        key_variable = "ACME_API_KEY"
        bad_input = BAD_INPUT

        def specs(self, train, held): ...
        def map_error(self, error): return mapped(error)

Needs pytest, and the vendor's SDK. docs/conformance.md explains the parts.
"""

from __future__ import annotations

from tuneport.providers.conformance.bench import BadInput, Bench, substituted
from tuneport.providers.conformance.deploying import Deploying
from tuneport.providers.conformance.exactly_once import ExactlyOnce
from tuneport.providers.conformance.lifecycle import Lifecycle
from tuneport.providers.conformance.refusals import Refusals
from tuneport.providers.conformance.sdk import sample_error

__all__ = ["BadInput", "Bench", "ProviderConformance", "sample_error", "substituted"]


class ProviderConformance(Lifecycle, ExactlyOnce, Refusals, Deploying):
    """Subclass it in a test module under a name that begins with Test; ``bench.Conformance`` says what to supply."""
