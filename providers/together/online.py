"""A plan against what Together says today: the model's limits and, once the files are there, Together's own price.

``GET /v1/fine-tunes/models/limits`` and ``POST /v1/fine-tunes/estimate-price`` (SDK together 3.1.1,
``types/finetune_model_limits.py``, ``types/fine_tuning_estimate_price_response.py``). Neither makes anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import CredentialsError, ProviderError, TuneportError, VendorClosedError
from tuneport.core.money import Cost, CostLine, Range
from tuneport.core.plan import Plan
from tuneport.providers.exchange import filled, refused, warned
from tuneport.providers.together.errors import translated
from tuneport.providers.together.session import TITLE, document

if TYPE_CHECKING:
    import together

EXPERT_MODULES = frozenset({"w_up", "w_gate", "w_down"})
"""Modules of experts that may be named beside those listed (SDK docstring of ``lora_trainable_modules``)."""

_OURS = "the cost shown is tuneport's estimate"
_ITEM = "training, as Together estimates it"


def asked(client: together.Together, plan: Plan, files: Mapping[str, str], today: date) -> Plan:
    """The plan with refusals where it exceeds the model's limits of today, and with Together's price where it tells one.

    Together prices only files that it holds and has checked: without ``files`` (role -> id) a warning says so.
    """
    try:
        with translated():
            limits = document(client.fine_tuning.with_raw_response.model_limits(model_name=plan.vendor_model))
    except (CredentialsError, VendorClosedError):
        raise
    except ProviderError as error:
        if error.retry != "no":
            raise
        return refused(plan, {"model": f"Together names no limits for {plan.vendor_model}, so it does not tune it ({error.what})"})
    plan = refused(plan, dict(faults(plan, limits)))
    return _priced(client, plan, files, today)


def faults(plan: Plan, limits: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, reason) for all that the payload asks beyond the model's limits. A limit that is not told refuses nothing."""
    sent = plan.payload
    method, tuning = _part(sent, "training_method"), _part(sent, "training_type")
    dpo, full = method.get("method") == "dpo", tuning.get("type") == "Full"
    group = _part(limits, "full_training" if full else "lora_training")
    if full and limits.get("supports_full_training") is False:
        yield "tuning.kind", f"Together tunes {plan.vendor_model} by lora only, as it says today"
    lengths = (limits.get("min_max_seq_length"), limits.get("max_seq_length_dpo" if dpo else "max_seq_length_sft"))
    batches = (group.get("min_batch_size"), group.get("max_batch_size_dpo" if dpo else "max_batch_size"))
    bounds: tuple[tuple[str, Any, Any, Any], ...] = (
        ("tuning.rank", tuning.get("lora_r"), None, group.get("max_rank")),
        ("training.batch_size", sent.get("batch_size"), *batches),
        ("training.learning_rate", sent.get("learning_rate"), limits.get("min_learning_rate"), limits.get("max_learning_rate")),
        ("training.epochs", sent.get("n_epochs"), None, limits.get("max_num_epochs")),
        ("training.max_seq_length", sent.get("max_seq_length"), *lengths),
        ("evaluation.evaluations", sent.get("n_evals"), None, limits.get("max_num_evals")),
        ("evaluation.checkpoints", sent.get("n_checkpoints"), None, limits.get("max_num_checkpoints")),
    )
    for path, value, low, high in bounds:
        reason = _outside(value, low, high)
        if reason:
            yield path, f"{reason} for {plan.vendor_model}, as Together says today"
    modules, known = tuning.get("lora_trainable_modules"), group.get("target_modules")
    if isinstance(modules, str) and modules != "all-linear" and isinstance(known, list) and known:
        strange = [name for name in modules.split(",") if name not in {*known, *EXPERT_MODULES}]
        if strange:
            listed = ", ".join(map(str, known))
            yield "tuning.target_modules", f"{', '.join(strange)} not among the modules of {plan.vendor_model}: {listed}"
    if _part(sent, "multimodal_params").get("train_vision") and limits.get("supports_vision") is False:
        yield "options.together.train_vision", f"{plan.vendor_model} reads no images, as Together says today"


def could_not_ask(plan: Plan, error: TuneportError) -> Plan:
    """The plan with the warning that Together was not asked, and why."""
    return warned(plan, "online", f"limits and price were not asked of Together: {error}")


def _priced(client: together.Together, plan: Plan, files: Mapping[str, str], today: date) -> Plan:
    if any(upload.role not in files for upload in plan.uploads):
        why = "Together tells its own price only for files that it holds, and no job of this ledger has uploaded them"
        return warned(plan, "online", f"{why}; {_OURS}")
    names = ("training_file", "validation_file", "model", "from_checkpoint", "n_epochs", "n_evals", "training_type", "training_method")
    body = {name: filled(plan.payload[name], files, TITLE) for name in names if plan.payload.get(name)}
    with translated():
        told = document(client.fine_tuning.with_raw_response.estimate_price(**body))
    price = told.get("estimated_total_price")
    if told.get("estimation_available") is False or isinstance(price, bool) or not isinstance(price, (int, float)):
        why = str(told.get("unavailable_reason") or "no reason given").replace("_", " ")
        return warned(plan, "online", f"Together tells no price for this job ({why}); {_OURS}")
    if told.get("allowed_to_proceed") is False:
        limit = told.get("user_limit")
        known = f" (its credit limit is {limit:,.2f} USD)" if isinstance(limit, (int, float)) else ""
        more = f"more than the account's balance and credit{known}: the job would likely be cancelled"
        plan = warned(plan, "credit", f"Together estimates {price:,.2f} USD, {more}")
    tokens = told.get("estimated_train_token_count")
    counted = f"{tokens:,.0f} training tokens; " if isinstance(tokens, (int, float)) else ""
    before = plan.cost.usd
    ours = f"tuneport's estimate: {before.low:,.2f} to {before.high:,.2f} USD" if before else "tuneport had no estimate"
    line = CostLine(item=_ITEM, usd=Range(low=price, high=price), basis=f"{counted}told by Together on {today}; {ours}")
    # In place of our lines, not beside them: the vendor's figure covers the whole job.
    return plan.model_copy(update={"cost": Cost(lines=(line,))})


def _outside(value: Any, low: Any, high: Any) -> str:
    if not _is_number(value):
        return ""
    if _is_number(low) and value < low:
        return f"{value:,g} is below the lowest, {low:,g},"
    if _is_number(high) and value > high:
        return f"{value:,g} exceeds the most, {high:,g},"
    return ""


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
