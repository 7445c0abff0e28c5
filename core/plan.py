"""A Plan: one JobSpec compiled for one provider, before anything is sent.

``Fields`` makes promise 1 (lossless or refused) hold by construction: a compiler reads every spec field through it,
each read records the field's outcome, and ``Fields.finish`` fails when a field was left unread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from tuneport.core.money import Cost, Duration, Range
from tuneport.core.spec import JobSpec

if TYPE_CHECKING:
    from tuneport.core.data.facts import JobData
    from tuneport.core.provider import Provider

Outcome = Literal["mapped", "converted", "defaulted", "refused"]

PLAN_VERSION = 1
"""Version of the JSON that ``tuneport plan --json`` prints; docs/plan-json.md describes it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FieldOutcome(_Frozen):
    """What became of one spec field at one provider."""

    path: str
    outcome: Outcome
    value: JsonValue = None  # as the user set it; None when unset
    wire: str | None = None  # where it stands in the payload, e.g. "method.supervised.hyperparameters.n_epochs"
    sent: JsonValue = None  # what is sent, where it differs from the value
    note: str = ""  # how it was converted, what the default is, or why it is refused


class Upload(_Frozen):
    """A file that goes to the provider before the job is made."""

    role: Literal["train", "validation"]
    source: str  # path of the user's file
    record: str  # name of the record shape it is converted to, e.g. "openai-chat"
    filename: str
    rows: int


class PlanWarning(_Frozen):
    """Something the user should know before submitting; ``code`` is stable, e.g. "lifetime"."""

    code: str
    message: str


class MachineFit(_Frozen):
    """Whether a kind of GPU holds the job, and how long it takes there."""

    name: str
    memory_gib: float
    peak_gib: Range | None = None  # what the job uses there, or would need at least; None when unknown
    fits: bool | None = None  # None: not known, or too close to tell
    seconds: Range | None = None
    here: bool = False  # this very machine has it
    note: str = ""


class Plan(_Frozen):
    """A spec compiled for one provider.

    ``payload`` is the exact body of the vendor's create call; file ids known only after upload stand in it as
    ``"${upload:train}"`` and ``"${upload:validation}"``, secrets as ``"${env:NAME}"``.
    A plan with refusals has its payload as far as it goes, and cannot be submitted.
    """

    version: Literal[1] = 1
    provider: str
    model: str  # catalogue name, or the id as given
    vendor_model: str  # the id that is sent
    operation: str  # the call that creates the job, e.g. "POST /fine_tuning/jobs"
    payload: dict[str, JsonValue]
    uploads: tuple[Upload, ...] = ()
    outcomes: tuple[FieldOutcome, ...]
    cost: Cost
    time: Duration
    warnings: tuple[PlanWarning, ...] = ()
    epochs: Range | None = None  # passes over the training rows that cost and time are reckoned for; None: not known
    machines: tuple[MachineFit, ...] = ()  # for a provider that trains on the user's own GPU

    @property
    def refusals(self) -> dict[str, str]:
        """Refused fields and why; empty when the plan can be submitted."""
        return {o.path: o.note for o in self.outcomes if o.outcome == "refused"}


HANDLED_BY_TUNEPORT: Mapping[str, str] = {
    "version": "version of the spec format",
    "data.train": "read, checked and uploaded by tuneport",
    "data.test": "kept back by tuneport; never sent to training",
    "data.format": "read by tuneport and converted to the provider's format",
    "data.system_prompt": "put into the rows by tuneport before upload",
    "data.split.validation": "cut by tuneport",
    "data.split.test": "cut by tuneport",
    "data.split.by": "cut by tuneport",
    "data.split.column": "cut by tuneport",
    "data.split.seed": "cut by tuneport",
    "budget.max_usd": "checked by tuneport before submission",
    "overrides": "carried out by tuneport before compiling",
}
"""Fields that tuneport itself carries out, the same for every provider."""

BELONGS_TO: Mapping[str, frozenset[str]] = {
    "preference.beta": frozenset({"dpo", "kto", "orpo", "simpo"}),
    "preference.sft_weight": frozenset({"dpo", "simpo"}),
    "preference.simpo_gamma": frozenset({"simpo"}),
    "preference.length_normalised": frozenset({"dpo", "simpo"}),
    "preference.desirable_weight": frozenset({"kto"}),
    "preference.undesirable_weight": frozenset({"kto"}),
    "reinforcement.grader": frozenset({"rft"}),
    "reinforcement.reasoning_effort": frozenset({"rft"}),
    "reinforcement.samples_per_prompt": frozenset({"rft"}),
    "reinforcement.max_prompt_length": frozenset({"rft"}),
    "reinforcement.max_output_tokens": frozenset({"rft"}),
    "distillation.teacher": frozenset({"distill"}),
}
"""Fields that have a meaning only in some methods."""


def compile_for(provider: Provider, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
    """The plan of a spec at one provider, its overrides carried out and shown in the outcomes' notes.

    Raises CatalogueError when the provider does not have the model.
    """
    plan = provider.compile(spec.for_provider(provider.name), data, today)
    own = (spec.overrides or {}).get(provider.name, {})
    if not own:
        return plan
    mark = f"set by overrides.{provider.name}"
    outcomes = []
    for o in plan.outcomes:
        if o.path == "overrides":  # the spec that was compiled has none left
            note = HANDLED_BY_TUNEPORT[o.path]
            outcomes.append(FieldOutcome(path=o.path, outcome="mapped", value={provider.name: own}, wire="(tuneport)", note=note))
        else:
            outcomes.append(o.model_copy(update={"note": f"{o.note} ({mark})" if o.note else mark}) if o.path in own else o)
    return plan.model_copy(update={"outcomes": tuple(outcomes)})


class Fields:
    """Reads a spec's fields for one provider and keeps each one's outcome.

    ``unsupported`` maps a field, or the dotted prefix of a group, to the reason why the provider does not offer it.
    """

    def __init__(self, spec: JobSpec, provider: str, unsupported: Mapping[str, str]) -> None:
        self.spec = spec
        own = f"options.{provider}."
        self._unread = {p: v for p, v in spec.fields() if not p.startswith("options.") or p.startswith(own)}
        self._outcomes: dict[str, FieldOutcome] = {}
        for path, note in HANDLED_BY_TUNEPORT.items():
            value = self._unread.pop(path)
            if value is None:
                self._put(path, "defaulted", note="not set")
            else:
                self._put(path, "mapped", value, wire="(tuneport)", note=note)
        for path, reason in unsupported.items():
            for leaf in [p for p in self._unread if p == path or p.startswith(path + ".")]:
                self.refuse_if_set(leaf, reason)
        for path, methods in BELONGS_TO.items():
            if path in self._unread and spec.method not in methods:
                self.refuse_if_set(path, f"has no meaning in method {spec.method}; it belongs to {', '.join(sorted(methods))}")

    def peek(self, path: str) -> Any:
        """The value at a path, without giving the field an outcome."""
        return self.spec.get(path)

    def send(
        self,
        path: str,
        wire: str,
        *,
        default: str,
        convert: Callable[[Any], JsonValue] | None = None,
        note: str = "",
    ) -> Any:
        """Read a field that the provider takes at ``wire``; return what to send, or None to leave it out.

        ``default`` says what the provider does when the field is unset ("unknown" when nobody says).
        ``convert`` changes the value for the wire; ``note`` then says how, and the outcome is *converted*.
        """
        value = self._unread.pop(path)
        if value is None:
            self._put(path, "defaulted", wire=wire, note=default)
            return None
        if convert is None:
            self._put(path, "mapped", value, wire=wire, note=note)
            return _json(value)
        sent = convert(value)
        self._put(path, "converted", value, wire=wire, sent=sent, note=note)
        return sent

    def refuse(self, path: str, reason: str) -> None:
        """Refuse a field, set or not (e.g. a required one that is missing)."""
        self._unread.pop(path, None)
        self._put(path, "refused", self.spec.get(path), note=reason)

    def refuse_if_set(self, path: str, reason: str) -> None:
        """Refuse a field when it is set; otherwise note that the provider does not offer it."""
        value = self._unread.pop(path, None)
        if value is None:
            self._put(path, "defaulted", note=f"not offered: {reason}")
        else:
            self._put(path, "refused", value, note=reason)

    def refused(self, path: str) -> bool:
        """Whether a field has been refused so far."""
        outcome = self._outcomes.get(path)
        return outcome is not None and outcome.outcome == "refused"

    def finish(self) -> tuple[FieldOutcome, ...]:
        """All outcomes in the spec's order. Raises AssertionError when the compiler left a field unread."""
        if self._unread:
            raise AssertionError(f"compiler dropped fields: {sorted(self._unread)}")
        return tuple(self._outcomes[path] for path, _ in self.spec.fields() if path in self._outcomes)

    def _put(self, path: str, outcome: Outcome, value: Any = None, **rest: Any) -> None:
        self._outcomes[path] = FieldOutcome(path=path, outcome=outcome, value=_json(value), **rest)


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
