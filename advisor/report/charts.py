"""Charts as static SVG: drawn by Altair and vl-convert, no JavaScript, two widths (desktop and phone).

Every text in a chart may come from data or a model, so the drawn SVG is parsed, checked against a list of allowed elements
and written again; colours are fixed here and recoloured for dark screens by the stylesheet.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from textwrap import wrap
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from tuneport.advisor.report.model import CashFlow, Evidence, Sensitivity
from tuneport.advisor.report.words import interval, percent, plain, usd
from tuneport.core.errors import MissingExtraError, TuneportError

INK, MUTED, GRID = "#1b2733", "#566473", "#dfe4ea"
TODAY, TUNED, LIMIT, LOW, HIGH = "#7a8794", "#1668b8", "#b3421f", "#c98a1b", "#2b7a5b"
"""Colours of the charts; style.css gives each its counterpart for dark screens."""

WIDE, NARROW = 860, 340
"""Width in pixels of the drawing for desktop and phone."""

FURNITURE = 66
"""Height in pixels of axis, legend and padding, beside the plot itself."""

_LABELS: dict[str, Any] = {"title": None, "labelFontSize": 13, "ticks": False, "domain": False, "grid": False}
_PADDING = {"left": 6, "right": 8, "top": 8, "bottom": 2}
_CONFIG: dict[str, Any] = {
    "font": "Arial",
    "legend": {"labelColor": INK},
    "view": {"stroke": None},
    "axisY": {"labelColor": INK},
    "axis": {
        "labelColor": MUTED, "titleColor": MUTED, "gridColor": GRID, "domainColor": GRID, "tickColor": GRID, "labelFontSize": 12,
        "titleFontSize": 12, "titleFontWeight": "normal", "labelPadding": 6,
    },
}  # fmt: skip

_SVG = "http://www.w3.org/2000/svg"
_ALLOWED = frozenset({"svg", "g", "path", "text", "tspan", "rect", "line", "defs", "clipPath", "title", "desc", "circle"})
_KEPT_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def accuracy_chart(evidence: Evidence) -> Markup:
    """Each arm's value with its interval, and the bar."""
    alt = _altair()
    arms = [a for a in evidence.arms if evidence.metric in a.metrics]
    names = _unique([a.name for a in arms])
    rows = [
        {"arm": name, "kind": a.kind, "value": e.value, "low": e.low, "high": e.high, "label": percent(e.value, 0)}
        for name, a in zip(names, arms, strict=True)
        for e in [a.metrics[evidence.metric]]
    ]

    def draw(narrow: bool) -> Any:
        data = alt.Data(values=rows)
        x = alt.X(
            "value:Q",
            scale=alt.Scale(domain=[-0.03, 1.03], nice=False),
            axis=alt.Axis(format=".0%", values=[0, 0.2, 0.4, 0.6, 0.8, 1], title=None),
        )
        y = alt.Y("arm:N", sort=names, axis=alt.Axis(**_LABELS, labelLimit=150 if narrow else 300))
        colour = alt.Color("kind:N", scale=alt.Scale(domain=["prompted", "tuned"], range=[TODAY, TUNED]), legend=None)
        chart = alt.Chart(data)
        spans = chart.mark_rule(strokeWidth=3, strokeCap="round", opacity=0.55).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour)
        dots = chart.mark_circle(size=130, opacity=1).encode(x=x, y=y, color=colour)
        labels = chart.mark_text(dy=-15, fontSize=13, fontWeight="bold").encode(x=x, y=y, text="label:N", color=colour)
        bar = alt.Chart(alt.Data(values=[{"bar": evidence.bar, "label": f"bar {percent(evidence.bar, 0)}"}]))
        rule = bar.mark_rule(color=LIMIT, strokeDash=[5, 4], strokeWidth=1.6).encode(x="bar:Q")
        note = bar.mark_text(color=LIMIT, align="center", dy=-8, fontSize=12).encode(x="bar:Q", y=alt.value(0), text="label:N")
        return alt.layer(rule, note, spans, dots, labels)

    title = f"{plain(evidence.metric)} of each arm with 95 % interval"
    told = "; ".join(f"{a.name}: {interval(a.metrics[evidence.metric])}" for a in arms)
    return _render(draw, "accuracy", title, f"{told}. Bar: {percent(evidence.bar)}.", 54 * len(rows) + 14)


def cash_chart(flow: CashFlow) -> Markup:
    """Money spent up to each month, today and with the offer, with P10 to P90 bands."""
    alt = _altair()
    names = ("Today", "Fine-tuned")
    rows = [
        {"month": p.month, "who": who, "p10": side.p10, "p50": side.p50, "p90": side.p90}
        for p in flow.points
        for who, side in zip(names, (p.today, p.tuned), strict=True)
    ]

    def draw(narrow: bool) -> Any:
        chart = alt.Chart(alt.Data(values=rows))
        legend = alt.Legend(title=None, orient="top", symbolType="stroke", labelFontSize=13, symbolStrokeWidth=4, symbolOpacity=1)
        colour = alt.Color("who:N", scale=alt.Scale(domain=list(names), range=[TODAY, TUNED]), legend=legend)
        months = alt.Axis(title="Months from now", grid=False, tickMinStep=1, tickCount=4 if narrow else 8)
        x = alt.X("month:Q", axis=months, scale=alt.Scale(nice=False))
        axis = alt.Axis(title=None, labelExpr=_money_axis(), tickCount=5)
        bands = chart.mark_area(opacity=0.18).encode(x=x, y=alt.Y("p10:Q", axis=axis), y2="p90:Q", color=colour)
        lines = chart.mark_line(strokeWidth=2.6).encode(x=x, y=alt.Y("p50:Q", axis=axis), color=colour)
        layers = [bands, lines]
        if flow.ends_month is not None:
            end = alt.Chart(alt.Data(values=[{"end": flow.ends_month, "label": "model ends"}]))
            layers.append(end.mark_rule(color=LIMIT, strokeDash=[5, 4], strokeWidth=1.6).encode(x="end:Q"))
            note = end.mark_text(color=LIMIT, align="left", dx=5, dy=10, fontSize=12)
            layers.append(note.encode(x="end:Q", y=alt.value(0), text="label:N"))
        return alt.layer(*layers)

    last = flow.points[-1]
    told = f"After {last.month:.0f} months: today {usd(last.today.p50)}, fine-tuned {usd(last.tuned.p50)} (medians)."
    return _render(draw, "cash", "Money spent up to each month, with P10 to P90 bands", told, 260)


def tornado_chart(sensitivity: Sensitivity) -> Markup:
    """Net present value when one input stands at its 10th or 90th percentile."""
    alt = _altair()
    ends = ("input low (P10)", "input high (P90)")

    def draw(narrow: bool) -> Any:
        names = ["\n".join(wrap(s.driver, 24)) if narrow else s.driver for s in sensitivity.swings]
        rows = [
            {"driver": name, "end": end, "npv": npv, "base": sensitivity.middle_npv}
            for name, s in zip(names, sensitivity.swings, strict=True)
            for end, npv in zip(ends, (s.npv_low, s.npv_high), strict=True)
        ]
        data = alt.Data(values=rows)
        legend = alt.Legend(title=None, orient="top", columns=1 if narrow else 2, labelFontSize=13)
        labels = _LABELS | {"labelFontSize": 12 if narrow else 13, "labelLimit": 340, "labelExpr": "split(datum.label, '\\n')"}
        y = alt.Y("driver:N", sort=names, axis=alt.Axis(**labels))
        x = alt.X("npv:Q", axis=alt.Axis(title=None, labelExpr=_money_axis(), tickCount=3 if narrow else 5), scale=alt.Scale(zero=True))
        colour = alt.Color("end:N", scale=alt.Scale(domain=list(ends), range=[LOW, HIGH]), legend=legend)
        bars = alt.Chart(data).mark_bar(height=16, opacity=0.9).encode(y=y, x=x, x2="base:Q", color=colour)
        zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=INK, strokeWidth=1.2).encode(x="zero:Q")
        return alt.layer(bars, zero)

    told = "; ".join(f"{s.driver}: {usd(s.npv_low)} to {usd(s.npv_high)}" for s in sensitivity.swings)
    height = 38 * len(sensitivity.swings) + 12
    return _render(draw, "tornado", "Net present value by input, one at a time", f"{told}.", height)


def _money_axis() -> str:
    """A Vega expression: dollars in k and M, with a true minus sign."""
    number = "abs(datum.value) >= 1000000 ? format(abs(datum.value) / 1000000, '~g') + 'M' : abs(datum.value) >= 1000 ? "
    number += "format(abs(datum.value) / 1000, '~g') + 'k' : format(abs(datum.value), '~g')"
    return f"(datum.value < 0 ? '\u2212$' : '$') + ({number})"


def _altair() -> Any:
    try:
        import altair  # noqa: PLC0415
        import vl_convert  # noqa: F401, PLC0415
    except ImportError:
        raise MissingExtraError("the charts of the report need Altair and vl-convert", "report") from None
    return altair


def _unique(names: list[str]) -> list[str]:
    """Vega merges rows of one name; a repeated name gets a number."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} [{seen[name]}]")
    return unique


def _render(draw: Callable[[bool], Any], key: str, title: str, description: str, height: int) -> Markup:
    """Both drawings of a chart; the stylesheet shows the one that fits."""
    import vl_convert  # noqa: PLC0415

    drawings = []
    for size, width in (("wide", WIDE), ("narrow", NARROW)):
        chart = draw(width == NARROW).properties(
            width=width, height=height + FURNITURE, autosize={"type": "fit", "contains": "padding"}, padding=_PADDING
        )
        spec = chart.to_dict() | {"background": None}
        spec.setdefault("config", {}).update(_CONFIG)
        drawings.append(_safe(vl_convert.vegalite_to_svg(spec), f"{key}-{size}", title, description))
    return Markup("").join(drawings)


def _safe(svg: str, key: str, title: str, description: str) -> Markup:
    """The drawing with a title and description, own ids, and nothing in it but shapes and text."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - drawn here by vl-convert, and checked below
    ElementTree.register_namespace("", _SVG)
    box = root.get("viewBox", "")
    for element in root.iter():
        name = element.tag.removeprefix(f"{{{_SVG}}}")
        if name not in _ALLOWED:
            raise TuneportError(f"the drawn chart {key} holds an unexpected element {name!r}", fix="report this as a fault of tuneport")
        for attribute, value in list(element.attrib.items()):
            if attribute.startswith(("on", "aria-", "{")) or attribute in ("role", "href", "class"):
                del element.attrib[attribute]
            elif attribute == "id":
                element.set("id", f"{key}-{value}")
            elif "url(" in value:
                element.set(attribute, _KEPT_REFERENCE.sub(rf"url(#{key}-\1)", value))
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("viewBox", box)
    root.set("class", f"chart {key.rpartition('-')[2]}")
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    for tag, text in (("desc", description), ("title", title)):
        child = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{key}-{tag}"})
        child.text = text
        root.insert(0, child)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - serialised from a checked tree
