"""Turns what a survey saw into findings. Thresholds carry the tag (S0 to S4) of the practitioners' document that they come from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from tuneport.core.data.characters import KINDS, WHAT
from tuneport.core.data.check_report import Finding, Severity, VendorFit
from tuneport.core.data.facts import TokenFacts
from tuneport.core.data.patterns import hide
from tuneport.core.data.split import Part
from tuneport.core.data.tally import KEPT, MOST_SYSTEMS, Hits, Tally, minority
from tuneport.core.spec import PREFERENCE_METHODS, Method

_ROWS_OVERFIT = 200  # S2: fewer than 200 examples overfit
_ROWS_GENERALISE = 500  # S1, S4: fewer than 500 are unlikely to generalise
_ROWS_DIMINISH = 10_000  # S1: beyond 10,000 returns diminish
_PAIRS = 1_000  # S0: DPO wants 1,000 to 10,000 pairs
_ROWS_PER_CLASS = 100  # S1: 100 to 200 per class
_TEST_ROWS = 150  # S2: 150 to 200 seen in practice; S4 wants 200 to 500
_CPT_TOKENS = 1_000_000  # S0, S4: continued pre-training takes millions to billions of tokens
_BALANCE = 10  # S0 asks for balanced classes; the factor is ours
_LABEL_SHARE = 20  # ours: answers are labels when each of them stands in 20 rows on average
_ODD_SHARE = 0.05  # ours: an ending or language of under 5 % of the rows is more likely a slip than a choice
_NUMBER = re.compile(r"\{([^{}|]*)\|([^{}|]*)\}")  # {form for one|form for several}
_MARKS = ".!?;:,…。！？"


class Findings:
    """Collects findings, one per code."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def hits(self, code: str, hits: Hits, severity: Severity, message: str) -> None:
        """Note rows; none, no finding. In the message ``{n}`` stands for their number, ``{it|them}`` for one of two forms by it."""
        self.rows(code, hits.count, hits.lines, severity, message, hits.examples)

    def rows(self, code: str, count: int, lines: Iterable[int], severity: Severity, message: str, examples: Iterable[str] = ()) -> None:
        """Note rows by number, first lines and examples, whose personal data is masked; none, no finding."""
        if count:
            first = tuple(lines)[:KEPT]
            said = _NUMBER.sub(lambda forms: forms[1 if count == 1 else 2], message.replace("{n}", f"{count:,}"))
            shown = tuple(map(hide, list(dict.fromkeys(examples))[:KEPT]))
            self._found[code] = Finding(code=code, severity=severity, message=said, count=count, lines=first, examples=shown)

    def file(self, code: str, severity: Severity, message: str, count: int = 1) -> None:
        """Note something about the file as a whole."""
        self._found[code] = Finding(code=code, severity=severity, message=message, count=count)

    def all(self) -> tuple[Finding, ...]:
        """Errors first, then warnings, then information; within each, in the order found."""
        rank = {"error": 0, "warning": 1, "info": 2}
        return tuple(sorted(self._found.values(), key=lambda finding: rank[finding.severity]))


def judge_rows(findings: Findings, tally: Tally, path: str, system_prompt: str | None, labels: Collection[str] | None) -> None:
    """What the rows are like."""
    for code, hits in tally.faults.items():
        line, fault = tally.first_faults[code]
        hint = f" ({fault.hint})" if fault.hint else ""
        findings.hits(code, hits, "error", f"{path}:{line}: expected {fault.expected}, met {fault.met}{hint}")
    findings.hits(
        "schema_mismatch", tally.schema_faults, "error",
        f"{{n}} answer{{|s}} {{does|do}} not satisfy the JSON schema, first: {(tally.schema_faults.examples or [''])[0]}",
    )  # fmt: skip
    message = "{n} pair{|s} {has|have} two equal answers and {teaches|teach} nothing"
    findings.hits("identical_pair", tally.identical_pairs, "warning", message)
    _systems(findings, tally, system_prompt)
    _forms(findings, tally)
    _labels(findings, tally, labels)
    for kind in KINDS:
        severity: Severity = "info" if kind in ("invisible", "private") else "warning"
        if kind in tally.suspicious:
            findings.hits(f"characters_{kind}", tally.suspicious[kind], severity, f"{{n}} row{{|s}} {{holds|hold}} {WHAT[kind]}")
    _languages(findings, tally)


def _systems(findings: Findings, tally: Tally, system_prompt: str | None) -> None:
    if tally.without_system.count and tally.systems:
        message = "{n} row{|s} {lacks|lack} the system prompt that others have; put the production system prompt into every row (S1)"
        findings.hits("missing_system_prompt", tally.without_system, "warning", message)
    elif tally.without_system.count:
        message = "no row has a system prompt; if production uses one, set data.system_prompt to it (S1)"
        findings.hits("no_system_prompt", tally.without_system, "info", message)
    count = len(tally.systems)
    if count > 1:
        number = f"{count:,}" if not tally.systems_left_out else f"more than {MOST_SYSTEMS:,}"
        message = f"{number} different system prompts; use the production one everywhere, unless they differ on purpose (S1)"
        findings.file("varying_system_prompt", "warning", message, count)
    if system_prompt:
        other = Hits()
        for text, hits in tally.systems.items():
            if text != system_prompt:
                other.merge(hits, 0)
                if len(other.examples) < KEPT:
                    other.examples.append(hide(text)[:60])
        other.count += tally.systems_left_out
        other.lines.sort()
        message = "{n} row{|s} {has|have} another system prompt than the production one that is given (S1)"
        findings.hits("other_system_prompt", other, "warning", message)


def _forms(findings: Findings, tally: Tally) -> None:
    if tally.json_answers.count and tally.other_answers.count:
        mostly_json = tally.json_answers.count >= tally.other_answers.count
        fewer = tally.other_answers if mostly_json else tally.json_answers
        are = ("{is|are} not", "are") if mostly_json else ("{is|are}", "are not")
        message = f"{{n}} of {tally.answered:,} answers {are[0]} JSON, the others {are[1]}; use one output format (S1)"
        findings.hits("inconsistent_output", fewer, "warning", message)
    if len(tally.json_shapes) > 1:
        commonest = ", ".join(max(tally.json_shapes.items(), key=lambda item: item[1].count)[0]) or "none"
        message = f"the JSON answers have {len(tally.json_shapes):,} different sets of fields, commonest: {commonest} (S1)"
        findings.file("varying_json_fields", "info", message, len(tally.json_shapes))
    total = sum(hits.count for hits in tally.endings.values())
    marked, bare = Hits(), Hits()
    for mark, hits in sorted(tally.endings.items(), key=lambda item: item[1].lines[:1]):
        (marked if mark in _MARKS else bare).merge(hits, 0)
    fewer, what = (marked, "{ends|end} with a punctuation mark, the others do not")
    if bare.count < marked.count:
        fewer, what = (bare, "{ends|end} without a punctuation mark, the others with one")
    if total >= _LABEL_SHARE and 0 < fewer.count <= _ODD_SHARE * total:
        message = f"{{n}} of {total:,} answers {what}; use one form (S1)"
        findings.rows("inconsistent_punctuation", fewer.count, sorted(fewer.lines), "info", message)


def _labels(findings: Findings, tally: Tally, labels: Collection[str] | None) -> None:
    """Answers from a small set: those outside a given set, and spellings of one label that differ in form only."""
    if labels is not None:
        known = set(labels)
        outside = Hits()
        for text, hits in tally.answers.items():
            if text not in known:
                outside.merge(hits, 0)
                outside.examples = [*outside.examples, text][:KEPT]
        outside.lines.sort()
        if tally.many_answers:
            message = f"the answers are long or too many to be labels; {len(known):,} labels are given"
            findings.file("unknown_label", "error", message, tally.answered)
        findings.hits("unknown_label", outside, "error", f"{{n}} answer{{|s}} {{is|are}} none of the {len(known):,} labels given")
    if tally.many_answers or len(tally.answers) < 2 or len(tally.answers) * 2 > tally.other_answers.count:
        return
    spellings: dict[str, list[str]] = {}
    for text in tally.answers:
        spellings.setdefault(" ".join(text.casefold().strip(_MARKS + " \"'").split()), []).append(text)
    variants = Hits()
    for texts in spellings.values():
        commonest = max(texts, key=lambda text: tally.answers[text].count)
        for text in texts:
            if text != commonest:
                variants.merge(tally.answers[text], 0)
                variants.examples.append(f"{text!r} for {commonest!r}")
    variants.lines.sort()
    message = "{n} answer{|s} {writes|write} a label in another way than most rows do; one label, one spelling (S1)"
    findings.hits("label_variants", variants, "warning", message)


def _languages(findings: Findings, tally: Tally) -> None:
    most, others = minority(tally.languages)
    told = sum(hits.count for hits in others.values()) + (tally.languages[most].count if most in tally.languages else 0)
    if not others or not told:
        return
    counts = ", ".join(f"{name} {hits.count / told:.0%}" for name, hits in sorted(others.items(), key=lambda item: -item[1].count)[:KEPT])
    odd = Hits()
    for hits in others.values():
        odd.merge(hits, 0)
    sample = f"{told:,} rows of the sample whose language is clear"
    message = f"several languages in {sample}: mostly {most}, also {counts}; keep the mix that production has"
    findings.rows("mixed_languages", odd.count, sorted(odd.lines), "info", message)


def judge_size(findings: Findings, tally: Tally, method: Method, part: Part, tokens: TokenFacts | None) -> None:
    """Compare the amount of data with what the method needs (field guide, section 3)."""
    rows = tally.good
    good = "good " if tally.bad else ""  # beside the number of all rows, the number of good ones needs its name
    if part == "test":
        if rows < _TEST_ROWS:
            message = f"{rows:,} {good}test rows; 150 to 200 are usual (S2), 200 to 500 advised (S4): fewer cannot show small gains"
            findings.file("small_test_set", "warning", message, rows)
        return
    if part != "train":
        return
    if method == "cpt":
        if tokens is not None and tokens.high < _CPT_TOKENS:
            message = f"about {tokens.high:,} tokens at most; continued pre-training takes millions to billions (S0, S4)"
            findings.file("too_few_tokens", "warning", message, rows)
    elif method in PREFERENCE_METHODS:
        if rows < _PAIRS:
            message = f"{rows:,} {good}preference rows; 1,000 to 10,000 pairs are advised (S0), 5,000 to 20,000 for a domain (S4)"
            findings.file("too_few_rows", "warning", message, rows)
    elif rows < _ROWS_OVERFIT:
        message = f"{rows:,} {good}row{'' if rows == 1 else 's'}; fewer than 200 overfit (S2), fewer than 500 hardly generalise (S1, S4): "
        message += "try a better prompt first"
        findings.file("too_few_rows", "warning", message, rows)
    elif rows < _ROWS_GENERALISE:
        message = f"{rows:,} {good}rows; enough to teach a format (S2), but fewer than 500 are unlikely to generalise (S1, S4)"
        findings.file("too_few_rows", "info", message, rows)
    if rows > _ROWS_DIMINISH and method != "cpt":
        message = f"{rows:,} {good}rows; beyond 10,000 returns diminish (S1), and 1,000 curated rows beat 10,000 noisy ones (S0)"
        findings.file("many_rows", "info", message, rows)
    _judge_classes(findings, _classes(tally))


def _classes(tally: Tally) -> Counter[str]:
    """The classes of classification rows, or of chat rows whose answers are labels."""
    if tally.labels:
        return tally.labels
    few = 2 <= len(tally.answers) <= tally.other_answers.count / _LABEL_SHARE
    return Counter({text: hits.count for text, hits in tally.answers.items()}) if few and not tally.many_answers else Counter()


def _judge_classes(findings: Findings, labels: Counter[str]) -> None:
    if not labels:
        return
    small = [label for label, count in labels.items() if count < _ROWS_PER_CLASS]
    if small:
        named = ", ".join(f"{hide(label)} ({labels[label]})" for label in sorted(small, key=lambda label: labels[label])[:KEPT])
        message = f"{len(small):,} of {len(labels):,} classes have fewer than 100 rows (S1 advises 100 to 200 each), smallest: {named}"
        findings.file("small_class", "warning", message, len(small))
    (most, many), (least, few) = labels.most_common()[0], labels.most_common()[-1]
    if many > _BALANCE * few:
        message = f"class {hide(most)!r} has {many:,} rows and {hide(least)!r} {few:,}; balance the classes (S0)"
        findings.file("unbalanced_classes", "warning", message, len(labels))


_PERSONAL = {
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "card": "payment card numbers",
    "iban": "bank account numbers (IBAN)",
    "ssn": "US social security numbers",
    "ip": "public IP addresses",
    "secret": "keys or tokens; revoke them, then remove them",
}


def judge_personal(findings: Findings, personal: dict[str, Hits]) -> None:
    """Personal data: it would be learnt, and may come out again (S0)."""
    for kind, hits in sorted(personal.items()):
        severity: Severity = "error" if kind == "secret" else "warning"
        message = f"{{n}} × {_PERSONAL.get(kind, kind)}; remove personal data (S0): tuneport prepare --redact all"
        findings.rows(f"personal_{kind}", hits.count, sorted(set(hits.lines)), severity, message, hits.examples)


def judge_vendors(findings: Findings, fits: Sequence[VendorFit], severity: Severity, refusals: Mapping[str, str]) -> None:
    """One finding for each provider whose limits the rows break, the one that breaks most of its models first.

    ``severity`` is that of a job that would be refused; rows that may only be cut are no more than a warning.
    ``refusals``: by provider, why it takes no such job at all.
    """
    for provider, reason in sorted(refusals.items()):
        findings.file(f"vendor_limit_{provider}", severity, reason)
    broken: dict[str, list[VendorFit]] = {}
    models: Counter[str] = Counter()
    for fit in fits:
        models[fit.provider] += len(fit.models)
        if fit.problems:
            broken.setdefault(fit.provider, []).append(fit)
    shares = {provider: sum(len(fit.models) for fit in bad) / models[provider] for provider, bad in broken.items()}
    for provider in sorted(broken, key=lambda name: (-shares[name], name)):
        bad = broken[provider]
        refused = [problem for fit in bad for problem in fit.problems if not problem.endswith("refused")]
        alike: dict[tuple[str, bool], list[str]] = {}
        for fit in bad:
            for problem in fit.problems:
                alike.setdefault((problem, fit.limit_is_context and problem not in refused), []).extend(fit.models)
        ordered = sorted(alike.items(), key=lambda item: (-len(item[1]), item[0]))
        told = [f"{problem} ({_models(names, models[provider], context)})" for (problem, context), names in ordered]
        more = f"; and {len(told) - 2} more" if len(told) > 2 else ""
        grade: Severity = "warning" if severity == "error" and not refused else severity
        code = "vendor_limit" if refused else "long_rows"
        findings.file(f"{code}_{provider}", grade, f"{provider}: {'; '.join(told[:2])}{more}", max(*(fit.perhaps_over for fit in bad), 1))


def _models(names: Sequence[str], of: int, context: bool) -> str:
    """Some models, out of so many of the provider's. ``context``: the limit is their context."""
    few = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    which = f"all {of} models" if len(names) == of and of > 3 else few
    return f"{which}; the model's context, no limit for training is known" if context else which
