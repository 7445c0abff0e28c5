"""Which offerings rows are set against: those that were named, those of a spec, or all that still take jobs."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date

from tuneport.core.catalogue import Catalogue, Offering, closed, load_catalogue
from tuneport.core.data.check_report import Severity
from tuneport.core.errors import CatalogueError, UsageError
from tuneport.core.spec import JobSpec, Method


@dataclass(frozen=True, slots=True)
class Chosen:
    """Offerings to compare with, and how grave a broken limit is: an error where the provider or model was named, a warning for
    a spec that leaves the provider open, else information. ``refusals``: by provider, why a named one takes no such job at all."""

    offerings: tuple[Offering, ...]
    severity: Severity
    refusals: dict[str, str]


def choose(models: Collection[str], providers: Collection[str], spec: JobSpec | None, method: Method, today: date) -> Chosen:
    """The offerings meant. ``models`` are catalogue names or vendor ids; closed offerings never count.

    Raises UsageError for a model or provider that the catalogue does not know, or that do not go together.
    """
    catalogue = load_catalogue()
    known = sorted({offering.provider for offering in catalogue.models()})
    for provider in providers:
        if provider not in known:
            close = difflib.get_close_matches(provider, known, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
            raise UsageError(f"the catalogue has no provider {provider!r}", fix=fix)
    for model in models:
        if catalogue.name_of(model) is None:
            close = list(catalogue.similar(model))
            fix = f"did you mean {' or '.join(close)}?" if close else "see `tuneport models`"
            raise UsageError(f"the catalogue has no model {model!r}", fix=fix)
    if spec is not None and not models:
        meant = _of_spec(catalogue, spec, known)
    else:
        wanted = {catalogue.name_of(model) for model in models}
        meant = [offering for offering in catalogue.models() if not wanted or offering.model in wanted]
    meant = [offering for offering in meant if not providers or offering.provider in providers]
    if models and providers and not meant:
        what = f"{' and '.join(providers)} does not offer {' or '.join(models)} for tuning, as far as the catalogue knows"
        raise UsageError(what, fix="see `tuneport models`")
    named = bool(models or providers or (spec and not isinstance(spec.model, str)))
    severity: Severity = "error" if named else "warning" if spec else "info"
    taking = [o for o in meant if not closed(o, today) and (o.methods is None or method in o.methods)]
    refusals: dict[str, str] = {}
    for provider in sorted({o.provider for o in meant} - {o.provider for o in taking}) if named else ():
        ended = [closed(o, today) for o in meant if o.provider == provider]
        which = "the model asked for" if len(ended) == 1 else "any of its models" if not models else "any of the models asked for"
        refusals[provider] = ended[0] if all(ended) else f"{provider} does not tune {which} by {method}, as far as the catalogue knows"
    return Chosen(tuple(taking), severity, refusals)


def _of_spec(catalogue: Catalogue, spec: JobSpec, providers: Collection[str]) -> list[Offering]:
    """What a plan of the spec would take, at each provider that has it."""
    found = []
    for provider in providers:
        try:
            offering = catalogue.offering(spec, provider)
        except CatalogueError:  # not to be had there
            continue
        if offering.known:
            found.append(offering)
    return found
