"""The decision in words: its sentence, the options beside it, next steps, kill criteria and what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tuneport.advisor.experiments import Pilot
from tuneport.advisor.intake import Intake
from tuneport.advisor.offers import Offer
from tuneport.advisor.rules import Fact, TraceLine, Verdict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Option(_Frozen):
    """One way forward, and what speaks for or against it."""

    name: str
    standing: Literal["recommended", "possible", "ruled out", "not assessed"]
    because: str
    cost: str


def _percent(value: Fact) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, int | float) else "an unknown share"


def _points(value: Fact) -> str:
    return f"{100 * value:.0f}" if isinstance(value, int | float) else "an unknown number of"


def _money(offer: Offer | None) -> str:
    cost = offer.training_usd if offer else None
    if cost is None:
        return "once its price is known"
    top = f"{cost.high:,.0f}" if cost.high >= 10 else f"{cost.high:,.2f}"
    return f"for at most ${top} a run" if cost.high > 0 else "at no charge"


def _usd(value: Fact) -> str:
    return f"${value:,.0f}" if isinstance(value, int | float) else "an unknown sum"


def _rough(value: Fact) -> str:
    """US dollars to three digits: what a sentence needs, and still adds up."""
    return _usd(float(f"{value:.3g}")) if isinstance(value, int | float) else _usd(None)


def _what(facts: Mapping[str, Fact]) -> str:
    return ", wrong answers included" if facts["misses_counted"] else ", calls and hosting only" if facts["misses_counted"] is False else ""


def _saving(value: Fact) -> str:
    if not isinstance(value, int | float):
        return "Unknown: a price is missing"
    return f"Saves about {_usd(value)} a month" if value >= 0 else f"Costs about {_usd(-value)} a month more"


def _less(value: Fact) -> str:
    if not isinstance(value, int | float):
        return "an unknown sum less"
    return f"{_rough(abs(value))} a month {'less' if value >= 0 else 'more'}"


def _seconds(value: Fact) -> str:
    return f"{value:.2g} seconds" if isinstance(value, int | float) else "an unknown time"


def sentence_of(verdict: Verdict, cause: str, facts: Mapping[str, Fact], offer: Offer | None) -> str:
    """The decision in one sentence."""
    arm, bar, metric = facts["baseline_arm"], _percent(facts["bar"]), str(facts["metric"]).replace("_", " ")
    base = _percent(facts["baseline_value"])
    where = "the cheapest open offer"
    if offer:
        where = (
            f"{offer.model} on your own machine" if offer.provider == "local" else f"{offer.model} at {offer.provider} ({offer.serving})"
        )
    gain = f"{_points(facts['gain_value'])} points ({_points(facts['gain_low'])} to {_points(facts['gain_high'])})"
    written: dict[tuple[str, str], str] = {
        ("retrieval", "knowledge-gap"): "Build retrieval, not a tuned model: what is missing are facts.",
        ("retrieval", "facts-change-monthly"): f"Build retrieval: the answers need facts that change {facts['change']}.",
        ("measure", "nothing-measured"): "Measure the prompted baseline first: without it nobody knows whether there is anything to gain.",
        ("measure", "metric-missing"): f"Measure {metric} first: the decision rests on it and no arm has it.",
        ("measure", "suite-too-small"): f"Measure on more rows first: {facts['rows']} test rows decide nothing.",
        ("measure", "answers-all-equal"): f"Measure on other rows first: all {facts['rows']} test rows expect the same answer, which a "
        "constant would give.",
        ("measure", "rows-cannot-show"): f"Measure on more rows first: the prompt {arm!r} reaches {base} {metric}, so {facts['rows']} test "
        f"rows could not show that a tuned model is better; about {facts['pilot_rows_needed']} could.",
        ("measure", "gain-unpaired"): "Compare the tuned model with the best prompt on the same rows before deciding.",
        ("measure", "incumbent-not-measured"): f"Measure today's model ({facts['incumbent']}) on the same rows before deciding: "
        f"the tuned model beats another model's prompt by {gain}, which says nothing of the one in use.",
        ("better_prompt", "baseline-meets-bar"): f"Do not fine-tune: switch to the prompt {arm!r}, which already reaches {base} "
        f"{metric} against a bar of {bar}.",
        ("better_prompt", "facts-change-monthly"): f"Do not fine-tune: requirements change {facts['change']}, so work on the prompt.",
        ("better_prompt", "too-few-rows"): f"Do not fine-tune yet: {facts['training_rows']} training rows are too few; improve the prompt "
        "and collect data.",
        ("pilot", "general-loss"): f"Do not ship the tuned model yet: it loses {_points(facts['general_loss'])} points on the general "
        "suite; pilot again with 20 to 30 % general rows mixed in.",
        ("better_prompt", "prompt-first"): "Do not fine-tune yet: length and tone are a matter for the prompt first; measure a second one.",
        ("better_prompt", "tuned-not-measured"): "Do not fine-tune: a pilot costs more than knowing its result is worth; improve the "
        f"prompt {arm!r} ({base} {metric}, bar {bar}).",
        ("measure", "baseline-meets-bar"): f"Measure a successor: the prompt {arm!r} reaches {base} {metric} against a bar of {bar}, but "
        f"{facts['incumbent']} ends on {facts['incumbent_ends']}.",
        ("route", "route-meets-bar"): f"Do not fine-tune: route to {facts['route']}. It reaches {_percent(facts['route_value'])} {metric} "
        f"against a bar of {bar} and saves about {_usd(facts['route_saving'])} a month.",
        ("migrate", "incumbent-ends"): f"Migrate from {facts['incumbent']}, which ends on {facts['incumbent_ends']}, to "
        f"{facts['lasting_model']} with the prompt {facts['lasting_arm']!r}: it reaches {_percent(facts['lasting_value'])} {metric} "
        f"against a bar of {bar}, without tuning.",
        ("migrate", "gain-shown"): f"Migrate from {facts['incumbent']}, which ends on {facts['incumbent_ends']}: fine-tune {where}, which "
        f"gains {gain} {metric} over the best prompt and reaches {_percent(facts['tuned_value'])} against a bar of {bar}.",
        ("pilot", "tuned-too-slow"): f"Do not ship the tuned model yet: 95 % of its answers take up to {_seconds(facts['tuned_p95'])}, and "
        f"{_seconds(facts['latency_need'])} are needed; pilot a smaller base model or a faster machine.",
        ("better_prompt", "gain-not-shown"): f"Do not fine-tune: no gain over the prompt {arm!r} is shown ({gain}).",
        ("do_nothing", "baseline-meets-bar"): f"Do not fine-tune: the prompt {arm!r} already reaches {base} {metric} "
        f"against a bar of {bar}.",
        ("do_nothing", "no-open-offer"): "Do nothing for now: the data may not leave, and no offer keeps it inside.",
        ("do_nothing", "dies-before-payback"): f"Do not fine-tune at {facts['offer']}: the base model ends on {facts['inference_ends']}, "
        "before the money is earned back.",
        ("do_nothing", "quality-priced"): f"Do not fine-tune: the model gains {gain}, but that costs more than the wrong answers do.",
        ("pilot", "tuned-not-measured"): f"Run one pilot: tune {where} {_money(offer)} and measure it; "
        f"the best prompt reaches {base} {metric}, short of the bar of {bar}.",
        ("pilot", "tuned-misses-bar"): f"Do not ship the tuned model: it gains {gain} but reaches only {_percent(facts['tuned_value'])} "
        f"{metric} against a bar of {bar}; run another pilot with more data or a larger base model.",
        ("find_offer", "no-measured-offer"): "Find a place to run it first: the tuned model is good enough, but no open offer with a known "
        "price serves it.",
        ("find_offer", "no-open-offer"): f"Find a place to train first: no offer is open ({facts['closed_offers']} closed), and the best "
        f"prompt reaches {base} {metric}, short of the bar of {bar}.",
        ("find_offer", "no-pilot-outlives-todays"): f"Find a place that lasts first: every open offer ends with {facts['incumbent']} on "
        f"{facts['incumbent_ends']}, so a pilot there would tune a model that ends with it.",
        ("find_offer", "offer-ends-with-todays"): f"Find a place that lasts first: the tuned model gains {gain}, but ends on "
        f"{facts['inference_ends']}, no later than {facts['incumbent']}.",
        ("pilot", "offer-ends-with-todays"): f"Run one pilot where the model lasts: tune {where} {_money(offer)} and measure it; the tuned "
        f"model that was measured gains {gain}, but ends on {facts['inference_ends']}, no later than {facts['incumbent']}.",
        ("pilot", "too-dear"): f"Run one pilot to save money: tune {where} {_money(offer)} and measure whether it is as good as the prompt "
        f"{arm!r} ({base} {metric}, bar {bar}), which costs about {_rough(facts['today_month'])} a month{_what(facts)}.",
        ("fine_tune", "too-dear"): f"Fine-tune {where} to save money: at {_percent(facts['tuned_value'])} {metric} it is no worse than "
        f"the best prompt ({base}), and saves about {_rough(facts['saving_month'])} a month{_what(facts)}.",
        ("fine_tune", "gain-shown"): f"Fine-tune {where}: {metric} rises by {gain} over the best prompt, to "
        f"{_percent(facts['tuned_value'])} against a bar of {bar}.",
    }  # fmt: skip
    sentence = written.get((verdict, cause), "Measure more before deciding: what is known does not settle the question.")
    if (verdict == "fine_tune" or (verdict, cause) == ("migrate", "gain-shown")) and facts["gap"] == "both":
        sentence = sentence.removesuffix(".") + ", together with retrieval for the facts."
    return sentence


def options_of(verdict: Verdict, lines: Mapping[str, TraceLine], facts: Mapping[str, Fact], chosen: Offer | None) -> tuple[Option, ...]:
    """Every option of the report, including the ones that nobody asked for."""

    def fired(*rules: str) -> str:
        return " ".join(f"{lines[r].says.rstrip('.')}: {lines[r].evidence}." for r in rules if lines[r].fired)

    known = facts["baseline_value"] is not None
    against = fired(
        "knowledge-gap", "baseline-meets-bar", "gain-not-shown", "tuned-misses-bar", "facts-change-monthly", "too-few-rows",
        "tuned-not-measured", "no-open-offer", "no-measured-offer", "dies-before-payback",
    )  # fmt: skip
    tune_standing: Literal["recommended", "possible", "ruled out"] = "ruled out"
    tunes = verdict == "fine_tune" or (verdict == "migrate" and chosen is not None and lines["gain-shown"].fired is True)
    if tunes and not (verdict == "migrate" and lines["lasting-prompt-meets-bar"].fired):
        tune_standing = "recommended"
    elif verdict in ("pilot", "measure", "find_offer"):
        tune_standing = "possible"
    money = chosen.economics if chosen else None
    paid = (
        f"About {_rough(money.likely.spent_once)} once, then about {_rough(facts['tuned_month'])} a month{_what(facts)}: "
        f"{_less(facts['tuned_saves'])} than today"
        if money
        else "Unknown: no offer with known prices"
    )
    nothing = f"Today's quality: {facts['current_arm'] or facts['baseline_arm']}, " if known else "Quality not measured. "
    if known:
        nothing += f"{_percent(facts['current_value'] if facts['current_value'] is not None else facts['baseline_value'])}. "
    if known and not lines["baseline-meets-bar"].fired:
        nothing += f"That misses the bar of {_percent(facts['bar'])}. "
    ends = f"Not open for long: {lines['incumbent-ends'].evidence}. " if lines["incumbent-ends"].fired else ""
    misses = known and tunes and not lines["baseline-meets-bar"].fired
    facts_needed = bool(facts["needs_facts"]) or facts["gap"] in ("knowledge", "both")
    route = facts["route"]
    moves = lines["lasting-prompt-meets-bar"]
    return (
        Option(
            name="Do nothing",
            standing="recommended" if verdict == "do_nothing" else "ruled out" if ends or misses else "possible",
            because=(ends + nothing).strip(),
            cost=f"About {_rough(facts['today_month'])} a month{_what(facts)}"
            if facts["today_month"] is not None
            else "What it costs today",
        ),
        Option(
            name="Better prompt",
            standing="recommended" if verdict == "better_prompt" else "possible" if known else "not assessed",
            because=f"Best prompt measured: {facts['baseline_arm']}, {_percent(facts['baseline_value'])} "
            f"against a bar of {_percent(facts['bar'])}."
            if known
            else "No prompt was measured.",
            cost="Hours of work; a longer prompt costs more per call",
        ),
        Option(
            name="Retrieval",
            standing="recommended" if verdict == "retrieval" else "possible" if facts_needed else "ruled out",
            because=f"Facts are missing: {facts['missing_facts']}." if facts_needed else "Answers need no facts from outside the request.",
            cost="Days to weeks to build, 20 to 200 ms per call (S2); not priced here",
        ),
        Option(
            name="Routing to a smaller model",
            standing="not assessed"
            if route is None
            else "recommended"
            if verdict == "route"
            else "possible"
            if lines["route-meets-bar"].fired is not False
            else "ruled out",
            because=f"Models measured with a prompt: {facts['measured_models']}. Measure a smaller one as one more arm to assess this."
            if route is None
            else f"{route}: {_percent(facts['route_value'])} against a bar of {_percent(facts['bar'])}.",
            cost="Not priced: no such arm was measured"
            if route is None
            else "Unknown: a price is missing"
            if facts["route_saves"] is None
            else _saving(facts["route_saving"]),
        ),
        *(
            [
                Option(
                    name="Migrate",
                    standing="recommended" if verdict == "migrate" else "possible",
                    because=f"{lines['incumbent-ends'].evidence}. "
                    + (f"{moves.says} {moves.evidence}." if moves.fired else "No prompted model that outlives it was measured at the bar."),
                    cost="Prompt work and a new measurement; costs.incumbent_move_usd of the decision file prices it",
                )
            ]
            if lines["incumbent-ends"].fired
            else []
        ),
        Option(
            name="Fine-tune",
            standing=tune_standing,
            because=fired("gain-shown", "tuned-no-worse", "tuned-meets-bar", "saves-money", "loses-money")
            if tunes
            else against or "See the trace.",
            cost=paid,
        ),
    )


def next_steps_of(verdict: Verdict, facts: Mapping[str, Fact], offer: Offer | None, intake: Intake, pilot: Pilot | None) -> tuple[str, ...]:
    """What to do, first things first."""
    bar, metric = _percent(intake.quality.bar), intake.quality.metric.replace("_", " ")
    steps: dict[Verdict, tuple[str, ...]] = {
        "do_nothing": ("Keep the measurement as a regression gate and repeat it when prompt, data or prices change.",),
        "better_prompt": (
            "Write the better prompt, measure it as one more arm on the same rows, and put it into use when it wins.",
            "Keep logging answers that miss: they are the training rows of a later attempt.",
        ),
        "retrieval": ("Build a retrieval prototype and measure it as one more arm (a column with the context) on the same rows.",),
        "measure": (
            f"Add test rows, to about {facts['pilot_rows_needed']}, and measure the same arms on them: {facts['measuring_command']}."
            if facts["pilot_rows_needed"]
            else f"Measure on {facts['measuring_rows']} held-out rows of the job spec, today's model first: {facts['measuring_command']}; "
            "then tuneport advise again, with --measurement measurement.json. Asking today's model once for each row costs "
            + (f"{facts['measuring']}." if facts["measuring"] else "an unknown sum: a price is missing."),
        ),
        "pilot": (
            f"Tune once at {offer.id}." if offer else "Find one open offer with a known price.",
            f"Measure the tuned model on the sealed test rows. What it must show: {pilot.must_show}"
            if pilot
            else f"Measure it on the sealed test rows: it must reach {bar} {metric}, and the interval of its gain must lie above zero.",
            "Stop if it does not; decide again if it does.",
        ),
        "find_offer": (
            f"Name a base model in the spec that serves beyond {facts['incumbent_ends']} (see tuneport models), and advise again."
            if facts["outlives"] is False or facts["pilot_outlives"] is False
            else "Mend what closes the offers (their table says why), or name another base model in the spec (see tuneport models)."
            if facts["open_offers"] == 0 and facts["unpriced_offers"] == 0
            else "Add the missing prices to the price book (TUNEPORT_PRICES), or plan the same base model at another provider.",
        ),
        "route": (
            f"Send a tenth of the requests along {facts['route']} in the shadow of today's model for two weeks and compare (S0, S4).",
            "Switch over when the measured quality holds; keep today's model as the fallback.",
        ),
        "migrate": (
            f"Train: {offer.id}, with a price limit in the spec (budget.max_usd)."
            if offer
            else f"Put {facts['lasting_model']} with the prompt {facts['lasting_arm']!r} in the shadow of today's model.",
            f"Switch over before {facts['incumbent_ends']}, with two weeks in the shadow of today's model while it still answers (S0, S4).",
            "Export training rows, spec and suite before the old provider closes.",
        ),
        "fine_tune": (
            f"Train: {offer.id}, with a price limit in the spec (budget.max_usd)." if offer else "Choose an offer.",
            "Run it in the shadow of today's model for two weeks and compare on live requests (S0, S4).",
            "Switch over, and run tuneport evaluate on every new version before it goes live.",
        ),
    }
    more = []
    if facts["residency_unknown"]:
        more.append(f"Before any data leaves, have it confirmed in writing that {facts['place']} processes it in {facts['regions']}.")
    if facts["incumbent_ends_inside"] and verdict != "migrate":
        more.append(f"Plan the move away from {facts['incumbent']} before {facts['incumbent_ends']}, whatever is decided here.")
    if facts["nobody_trains"] and (verdict in ("pilot", "fine_tune") or (verdict == "migrate" and offer)):
        more.append("Find somebody who can call a tuning API or train a model: the team's skills end at prompting (S0).")
    detectable = facts["detectable"]
    if isinstance(detectable, float) and detectable > 0.1:
        more.append(f"Add test rows: the suite detects only about {_points(detectable)} points.")
    if facts["more_data"]:
        more.append(f"Buy more training rows. {facts['curve']}")
    return (*steps[verdict], *more)


def pilot_for_money(facts: Mapping[str, Fact]) -> bool:
    """Would a pilot have to be as good as the prompt and cheaper, rather than better than it?"""
    best, bar = facts["baseline_value"], facts["bar"]
    return bool(facts["too_dear"]) and best is not None and best >= bar  # type: ignore[operator]


def kill_criteria_of(verdict: Verdict, facts: Mapping[str, Fact], offer: Offer | None, intake: Intake) -> tuple[str, ...]:
    """When to stop or to turn back."""
    bar, metric = _percent(intake.quality.bar), intake.quality.metric.replace("_", " ")
    if verdict == "pilot":
        return (
            f"Stop when the pilot's {metric} is below {bar}, or the interval of its gain over {facts['baseline_arm'] or 'the best prompt'} "
            + (f"reaches below {_points(facts['accepted_loss'])} points." if pilot_for_money(facts) else "includes zero."),
            f"Stop after {intake.runs.planned} runs, whatever the last one promises.",
        )
    if verdict == "route":
        return (f"Back to today's model when {metric} on 200 fresh, labelled rows falls below {bar}, or the price of the route rises.",)
    if verdict == "fine_tune" or (verdict == "migrate" and offer):
        turn = "Back to the prompt" if verdict == "fine_tune" else "Try another place or model"
        criteria = [
            f"{turn} when {metric} on 200 fresh, labelled rows falls below {bar}.",
            f"{turn} when the general suite loses more than 5 % (S4).",
        ]
        money = offer.economics if offer else None
        if money and money.likely.break_even_volume:
            needed = float(f"{money.likely.break_even_volume:.3g}")
            criteria.append(f"Review when volume stays under {needed:,.0f} requests a month for two months: it would not pay back in time.")
        if offer and offer.inference_ends:
            criteria.append(f"Move before {offer.inference_ends}, when the base model ends; review at once when the date moves forward.")
        elif offer and offer.provider != "local":
            criteria.append("Review at once when the provider announces an end of the base model.")
        return tuple(criteria)
    return (f"Reopen the question when {metric} in use falls below {bar} on 200 fresh, labelled rows.",)


def _same_for_less(facts: Mapping[str, Fact]) -> bool:
    """Is the measured tuned model good enough, no worse than the best prompt, and does it surely save money?"""
    low, loss, saves, value, bar = (facts[name] for name in ("gain_low", "accepted_loss", "p_saves", "tuned_value", "bar"))
    return None not in (low, saves, value) and low > loss and saves >= 0.9 and value >= bar  # type: ignore[operator]


def changes_of(verdict: Verdict, facts: Mapping[str, Fact]) -> tuple[str, ...]:
    """What would lead to another verdict, beside figures that ``turning_points`` and the switching values give."""
    found: list[str] = []
    high, gain_high = facts["baseline_high"], facts["gain_high"]
    if facts["baseline_value"] is not None and verdict in ("do_nothing", "better_prompt") and facts["baseline_value"] >= facts["bar"]:  # type: ignore[operator]
        found.append(f"A bar above {_percent(facts['baseline_value'])} (beyond doubt above {_percent(high)}).")
    if verdict in ("do_nothing", "better_prompt") and facts["outlives"] and not facts["too_dear"] and _same_for_less(facts):
        found.append(
            f"Cost as the problem (symptoms: too_dear): the tuned model is as good and saves about {_rough(facts['saving_month'])} a month"
            f"{_what(facts)}."
        )
    if verdict == "better_prompt" and isinstance(gain_high, float) and gain_high > 0:
        found.append(f"More test rows: a gain of up to {_points(gain_high)} points is not excluded.")
    if verdict == "fine_tune" and facts["baseline_value"] >= facts["bar"]:  # type: ignore[operator]
        loss = _points(-facts["accepted_loss"])  # type: ignore[operator]
        found.append(f"A repeat on fresh rows that does not show the tuned model to be within {loss} points of the prompt.")
    elif verdict == "fine_tune":
        found.append("A repeat on fresh rows in which the interval of the gain includes zero.")
    if verdict in ("pilot", "measure", "find_offer"):
        found.append("What the next step finds.")
    if facts["data_may_leave"] is False:
        found.append("Permission for the data to leave: the managed vendors would then be open.")
    if facts["training_rows"] is not None and verdict == "better_prompt":
        found.append("More curated training rows: 500 or better 1,000 (S0, S1, S4).")
    return tuple(found)
