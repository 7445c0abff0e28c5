"""A plan against what Fireworks says today: may this model be tuned, how long may a sequence be, is the account in order.

Fields of ``models.get`` and ``accounts.get`` (fireworks-ai 1.2.28, ``types/model.py``, ``types/account.py``). Fireworks
has no call that tells a price before a job is made; ``estimatedCost`` stands on the job itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from tuneport.core.errors import CredentialsError, ProviderError, UsageError, VendorClosedError
from tuneport.core.plan import Plan
from tuneport.providers.exchange import refused, warned
from tuneport.providers.fireworks.session import Api, model_parts, status_of

METHODS_FLAG: Mapping[str, tuple[str, str]] = {
    "reinforcementFineTuningJobs": ("rlTunable", "rft"),
    "supervisedFineTuningJobs": ("tunable", "sft"),
    "dpoJobs": ("tunable", "preference tuning"),
}
"""Family of jobs -> the flag of a model that allows it, and what to call it."""


def asked(api: Api, plan: Plan, family: str) -> Plan:
    """The plan with refusals where Fireworks says today that the job cannot be, and warnings of what it says beside.

    Raises CredentialsError and VendorClosedError; any other failure to ask becomes a warning.
    """
    training = plan.payload.get("trainingConfig")
    sent: Mapping[str, Any] = training if isinstance(training, dict) else plan.payload
    plan = _account(api, plan)
    warm = sent.get("warmStartFrom")
    name = str(warm or sent.get("baseModel") or plan.vendor_model)
    try:
        account, ident = model_parts(name)
        model = api.ask(api.client.models.with_raw_response.get, ident, account_id=account)
    except (CredentialsError, VendorClosedError):
        raise
    except (ProviderError, UsageError) as error:
        if status_of(error) == 404:
            return refused(plan, {"continue_from" if warm else "model": f"Fireworks knows no model {name} today"})
        return could_not_ask(plan, error)
    return _model(plan, name, model, sent, None if warm else METHODS_FLAG[family])


def could_not_ask(plan: Plan, error: Exception) -> Plan:
    """The plan with the warning that Fireworks was not asked, and why."""
    return warned(plan, "online", f"Fireworks could not be asked, and the catalogue's limits hold: {error}")


def _account(api: Api, plan: Plan) -> Plan:
    try:
        account = api.ask(api.client.accounts.with_raw_response.get)
    except (CredentialsError, VendorClosedError):
        raise
    except ProviderError as error:
        return could_not_ask(plan, error)
    suspended = account.get("suspendState")
    if suspended not in (None, "", "UNSUSPENDED"):
        message = f"Fireworks has suspended account {api.account} ({suspended}); it will not run jobs until that is settled"
        plan = warned(plan, "account", message)
    return plan


def _model(plan: Plan, name: str, model: Mapping[str, Any], sent: Mapping[str, Any], flag: tuple[str, str] | None) -> Plan:
    reasons: dict[str, str] = {}
    if flag is not None and model.get(flag[0]) is False:
        reasons["model"] = f"Fireworks says today that {name} cannot be tuned by {flag[1]} ({flag[0]} is false)"
    if model.get("supportsLora") is False and flag is not None:
        reasons["tuning.kind"] = f"Fireworks says today that {name} takes no LoRA adapters"
    longest, wanted = model.get("trainingContextLength"), sent.get("maxContextLength")
    if longest and isinstance(wanted, int) and wanted > longest:
        reasons["training.max_seq_length"] = f"{wanted:,} exceeds the {longest:,} tokens that Fireworks trains {name} with today"
    plan = refused(plan, reasons)
    if flag is not None and flag[0] not in model:
        plan = warned(plan, "online", f"Fireworks does not say whether {name} can be tuned by {flag[1]}")
    if model.get("state") not in (None, "", "READY"):
        plan = warned(plan, "online", f"Fireworks says that {name} is not ready (it is {model['state']})")
    ends = _day(model.get("deprecationDate"))
    if ends:
        plan = warned(plan, "lifetime", f"Fireworks takes the serverless deployment of {name} down on {ends}")
    return plan


def _day(value: Any) -> str:
    """A date from Google's Date; a month or a day that is 0 is left out."""
    if not isinstance(value, Mapping) or not value.get("year"):
        return ""
    year, month, day = int(value["year"]), int(value.get("month") or 0), int(value.get("day") or 0)
    try:
        return str(date(year, month, day)) if month and day else f"{year}-{month:02d}" if month else str(year)
    except ValueError:
        return ""
