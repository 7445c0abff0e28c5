"""What Together can run a model on: its deployment configurations, the hardware that they name, and its price an hour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import RefusedError, UsageError
from tuneport.providers.together.session import document

if TYPE_CHECKING:
    import together


def pages(call: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The entries of a list with cursors."""
    more: dict[str, Any] = {}
    while True:
        page = document(call(**more))
        yield from (entry for entry in page.get("data") or () if isinstance(entry, dict))
        if not page.get("next_cursor"):
            return
        more = {"after": page["next_cursor"]}


def configs_for(client: together.Together, project: str, model: str, resource: str) -> list[dict[str, Any]]:
    """The configurations for the model, or for the base that it was tuned from. Raises RefusedError when there is none."""
    lister = client.models.configs.with_raw_response.list
    base: Any = document(client.models.with_raw_response.retrieve(model, project_id=project)).get("baseModel")
    for reference in filter(None, (resource, base)):
        found = list(pages(lambda reference=reference, **more: lister(project_id=project, reference_model=str(reference), **more)))
        if found:
            return found
    reason = "Together has no deployment configuration for it or its base, so it cannot be served there; download it (tuneport export)"
    raise RefusedError("together", {"model": reason}, wanted="deployment")


def chosen(
    configs: list[dict[str, Any]], hardware: list[dict[str, Any]], wanted: str | None, base: str
) -> tuple[dict[str, Any], float | None, str, list[str]]:
    """(configuration, US cents per hour and replica or None, what it runs on, the other configurations' names)."""
    known = []
    for config in configs:
        kind = next((found for found in hardware if _runs_on(config, found)), None)
        cents = kind.get("priceCentsPerHour") if kind else None
        words = " ".join(str(s.get("value")) for s in config.get("selectors") or ())
        told = f"{kind['gpuCount']} x {kind['gpuType']}" if kind else words or str(config["id"])
        known.append((config, float(cents) if cents is not None else None, told))
    if wanted is not None:
        fit = [one for one in known if wanted == one[0]["id"] or wanted.lower() in one[2].lower().split()]
        if not fit:
            there = ", ".join(f"{told} ({config['id']})" for config, _, told in known)
            raise RefusedError("together", {"--hardware": f"{wanted} is not offered for this model; offered: {there}"}, wanted="deployment")
        known = fit
    priced = [one for one in known if one[1] is not None]
    if not priced and len(known) > 1:
        there = ", ".join(f"{told} ({config['id']})" for config, _, told in known)
        raise UsageError(f"Together has several configurations for {base} and no price for any: {there}", fix="choose one with --hardware")
    best = min(priced, key=lambda one: one[1] or 0.0) if priced else known[0]
    return *best, [f"{told} ({config['id']})" for config, _, told in known if config is not best[0]]


def _runs_on(config: Mapping[str, Any], hardware: Mapping[str, Any]) -> bool:
    """Whether a configuration's selectors (key, value) name this hardware: by its id, or by type and number of GPUs."""
    selectors = {str(s.get("key")).lower(): str(s.get("value")).lower() for s in config.get("selectors") or ()}
    if str(hardware.get("id")).lower() in selectors.values():
        return True
    of_type = str(hardware.get("gpuType")).lower() in selectors.values()
    counts = [value for key, value in selectors.items() if "count" in key]
    return of_type and counts == [str(hardware.get("gpuCount"))]
