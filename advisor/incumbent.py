"""What to beware of in the name of today's model: a model of one's own is allowed, a slip of the pen should not pass for one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from tuneport.advisor.intake import Incumbent
from tuneport.advisor.pricing import Desk, Side
from tuneport.core.catalogue import Offering, base_of


def about_incumbent(incumbent: Incumbent, offering: Offering | None, desk: Desk, now: Side) -> Iterator[str]:
    """Sentences on a provider or model that no fact is known of. ``offering`` is the catalogue's entry, ``now`` today's prices."""
    offered = desk.catalogue.models()
    providers = sorted({o.provider for o in offered} | {p.provider for p in desk.book.prices()})
    if incumbent.provider not in providers:
        yield f"incumbent.provider: nothing is known of {incumbent.provider!r}{_meant(incumbent.provider, providers)}."
    elif offering is None and incumbent.provider != "local":
        names = [name for o in offered if o.provider == incumbent.provider for name in (o.model, o.vendor_id)]
        what = f"incumbent.model: the catalogue has no {incumbent.model!r} at {incumbent.provider}, so its end is not known"
        yield f"{what}{_meant(base_of(incumbent.model), names)}."
    if now.unknown and incumbent.provider != "local":
        yield f"Today's money is unknown: {'; '.join(now.unknown)}. Add them to a price book of your own (TUNEPORT_PRICES, docs/facts.md)."


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
