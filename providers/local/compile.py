"""A JobSpec as the exact configuration of a local training run (``local_backend.config.TrainConfig``). Pure; imports no torch.

Every unset field gets a value here, shown in its outcome: the worker has no defaults of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from pydantic import JsonValue

from tuneport.core.catalogue import Offering, lifetime_warnings, load_catalogue
from tuneport.core.data.facts import Feature, JobData
from tuneport.core.money import Cost, CostLine, Duration, Range
from tuneport.core.plan import Fields, Plan, PlanWarning
from tuneport.core.spec import JobSpec
from tuneport.local_backend.config import Adapter, EarlyStop, TrainConfig
from tuneport.local_backend.estimate import GIB, Hardware, detect_hardware, memory_bytes, training_time
from tuneport.local_backend.models import Shape, packaged_models, packaged_name, shape_of
from tuneport.local_backend.records import RECORD
from tuneport.local_backend.schedule import total_steps
from tuneport.providers.common import DataRules, file_tokens, refuse_unfit_data, send_validation, uploads_for

OPERATION = "python -m tuneport.local_backend.train JOBDIR"

ONLY_SFT = "this version trains SFT only"
ONLY_LORA = "this version trains LoRA adapters only"

UNSUPPORTED: Mapping[str, str] = {
    "continue_from": "this version starts every adapter from the base model",
    "training.packing": "this version trains each row in a sequence of its own; rows of similar length share a batch",
    "preference": ONLY_SFT,
    "reinforcement": ONLY_SFT,
    "distillation": ONLY_SFT,
    "tracking.wandb": "this version keeps metrics on this machine only; read them with `tuneport events`",
    "export.hub_repo": "this version uploads nothing; the adapter's folder can be pushed with `hf upload`",
}
"""What the local backend does not offer: field, or prefix of a group, -> reason."""

CANNOT_CARRY: Mapping[Feature, str] = {
    "images": "this version trains on text only",
    "row_weights": "this version gives every row the same weight",
    "prompt_only": "the rows end with the user, and there is no answer to learn",
}

RANK = 16
RANK_WHY = "field guide: 16 to 64 for LoRA; the small end suits small data"
DROPOUT = 0.0
DROPOUT_WHY = "none: the best checkpoint by validation loss guards against overfitting, and the fused layers need no dropout"
EPOCHS = 3.0
EPOCHS_WHY = "field guide: 3 epochs, most runs overfit before the fifth"
BATCH = 8
BATCH_WHY = "small batches suit LoRA (LoRA Without Regret, 2025) and small data"
MICRO_BATCH = 8
WARMUP_RATIO = 0.05
EVALUATIONS = 4
CHECKPOINTS = 3
LEARNING_RATES: tuple[tuple[float, float, str], ...] = (
    (0.5e9, 1e-3, "measured on a 135M model: 1e-3 beats 3e-4"),
    (3e9, 5e-4, "field guide: 1e-4 to 5e-4, the high end for small models"),
    (20e9, 2e-4, "field guide: 1e-4 to 3e-4 for 7B to 13B"),
    (float("inf"), 1e-4, "field guide: 1e-4 to 5e-4, the low end for large models"),
)
"""(parameters up to, default learning rate of LoRA, why)."""
UNKNOWN_SIZE_RATE = (2e-4, "field guide's worked example; the model's size is unknown before it is loaded")


def compile_plan(spec: JobSpec, data: JobData, today: date | None = None, hardware: Hardware | None = None) -> Plan:
    """The plan of this spec on this machine. ``hardware`` is detected when None.

    Raises CatalogueError when the base model is neither known, nor a path, nor of the form of a hub id.
    """
    day = today or date.today()
    offering = _offering(spec)
    shape = shape_of(offering.vendor_id) or (Shape(parameters=offering.parameters_b * 1e9) if offering.parameters_b else None)
    fields = Fields(spec, "local", UNSUPPORTED)
    machine = hardware or detect_hardware(spec.options.local.device or "auto")

    _method(fields)
    if spec.method == "sft":  # another method is refused itself; what its rows hold is then beside the point
        refuse_unfit_data(fields, data, DataRules(cannot_carry=CANNOT_CARRY))
    config = _config(fields, data, offering, shape)
    time = _time(config, data, shape, machine)
    payload: dict[str, JsonValue] = config.model_dump(mode="json")
    return Plan(
        provider="local",
        model=offering.model,
        vendor_model=offering.vendor_id,
        operation=OPERATION,
        payload=payload,
        uploads=uploads_for(data, RECORD, "rows", validation=config.validation_file is not None),
        outcomes=fields.finish(),
        cost=_cost(spec.options.local.gpu_usd_per_hour, time),
        time=time,
        warnings=_warnings(config, data, offering, shape, machine, day),
    )


def _offering(spec: JobSpec) -> Offering:
    """What the catalogue says of the model; a model that comes in a Python package is known without it."""
    named = spec.model_for("local")
    if named is not None and packaged_name(named) is not None and load_catalogue().name_of(named) is None:
        return Offering(named, "local", named, serving=("local",))
    return load_catalogue().offering(spec, "local")


def _method(fields: Fields) -> None:
    if fields.spec.method == "sft":
        fields.send("method", "method", default="sft")
    else:
        fields.refuse("method", f"{ONLY_SFT}; method {fields.spec.method} is refused, never replaced by another")


# -- the configuration -------------------------------------------------------------------------------------------------


class _Resolver:
    """Reads fields and fills unset ones with the local default, which then stands in the field's outcome."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    def value(self, path: str, wire: str, default: Any, why: str = "") -> Any:
        """The field's value, or the default, which the outcome then names with its reason."""
        shown = "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
        sent = self.fields.send(path, wire, default=f"{shown}: {why}" if why else shown)
        return default if sent is None else sent


def _config(fields: Fields, data: JobData, offering: Offering, shape: Shape | None) -> TrainConfig:
    read = _Resolver(fields)
    _model(fields, offering)
    unknown = "unknown: no machine cost in the estimate"
    fields.send("options.local.gpu_usd_per_hour", "(tuneport)", default=unknown, note="used for the cost estimate")
    # What is refused is not sent, nor does anything else follow from it.
    has_validation = not fields.refused("data.validation") and send_validation(fields, data, "validation_file")
    evaluations, early_stopping = _evaluation(read, has_validation)
    return TrainConfig(
        name=read.value("name", "name", None, "the job's key names the adapter"),
        tags=read.value("tags", "tags", {}),
        model=offering.vendor_id,
        adapter=_adapter(read),
        **_length(read),
        **_batch(read),
        **_schedule(read, shape),
        weight_decay=read.value("training.weight_decay", "weight_decay", 0.0),
        max_grad_norm=read.value("training.max_grad_norm", "max_grad_norm", 1.0),
        max_seq_length=read.value("training.max_seq_length", "max_seq_length", None, "the model's own limit; a longer row fails the job"),
        loss_on=read.value("training.loss_on", "loss_on", "completions"),
        evaluations=evaluations,
        checkpoints=read.value("evaluation.checkpoints", "checkpoints", CHECKPOINTS, "the last one at the end of the run"),
        early_stopping=early_stopping,
        seed=read.value("training.seed", "seed", 0),
        device=read.value("options.local.device", "device", "auto", "the GPU when torch sees one"),
        dtype=read.value("options.local.dtype", "dtype", "bf16", "precision of the base; the adapter learns in fp32"),
        chat_template=read.value("options.local.chat_template", "chat_template", None, "the model's own template"),
        validation_file="${upload:validation}" if has_validation else None,
    )


def _model(fields: Fields, offering: Offering) -> None:
    changed = fields.peek("model") != offering.vendor_id
    convert = (lambda _: offering.vendor_id) if changed else None
    fields.send("model", "model", default="", convert=convert, note="the name on this machine" if changed else "")


def _adapter(read: _Resolver) -> Adapter:
    kind = read.fields.peek("tuning.kind")
    if kind in (None, "lora"):
        read.value("tuning.kind", "adapter.kind", "lora")
    else:
        read.fields.refuse("tuning.kind", f"{ONLY_LORA}; {kind} is refused, never replaced by LoRA")
    rank = read.value("tuning.rank", "adapter.rank", RANK, RANK_WHY)
    return Adapter(
        rank=rank,
        alpha=read.value("tuning.alpha", "adapter.alpha", 2.0 * rank, "twice the rank (field guide)"),
        dropout=read.value("tuning.dropout", "adapter.dropout", DROPOUT, DROPOUT_WHY),
        target_modules=read.value("tuning.target_modules", "adapter.target_modules", "all-linear", "LoRA Without Regret, 2025: all layers"),
    )


def _length(read: _Resolver) -> dict[str, Any]:
    steps = read.value("training.steps", "steps", None, "training.epochs sets the length")
    default, why = (EPOCHS, EPOCHS_WHY) if steps is None else (None, "training.steps sets the length")
    return {"steps": steps, "epochs": read.value("training.epochs", "epochs", default, why)}


def _batch(read: _Resolver) -> dict[str, Any]:
    """The batch, and its division into the largest micro-batches of at most ``MICRO_BATCH`` rows when that is left open."""
    given = read.fields.peek("training.gradient_accumulation") or 1
    size = read.value("training.batch_size", "batch_size", -(-BATCH // given) * given, BATCH_WHY)
    parts = next(n for n in range(1, size + 1) if size % n == 0 and size // n <= MICRO_BATCH)
    why = f"micro-batches of at most {MICRO_BATCH} rows"
    accumulation = read.value("training.gradient_accumulation", "gradient_accumulation", parts, why)
    return {"batch_size": size, "gradient_accumulation": accumulation, "micro_batch_size": size // accumulation}


def _schedule(read: _Resolver, shape: Shape | None) -> dict[str, Any]:
    fields = read.fields
    scheduler = read.value("training.scheduler", "scheduler", "cosine")
    settings: dict[str, Any] = {"scheduler": scheduler, "scheduler_cycles": 0.5, "min_learning_rate_ratio": 0.0}
    if scheduler == "cosine":
        settings["scheduler_cycles"] = read.value("training.scheduler_cycles", "scheduler_cycles", 0.5, "one fall from peak to lowest")
    else:
        fields.refuse_if_set("training.scheduler_cycles", f"the {scheduler} schedule has no cycles")
    if scheduler == "constant":
        fields.refuse_if_set("training.min_learning_rate_ratio", "a constant learning rate never falls")
    else:
        settings["min_learning_rate_ratio"] = read.value("training.min_learning_rate_ratio", "min_learning_rate_ratio", 0.0)
    steps = read.value("training.warmup_steps", "warmup_steps", None, "training.warmup_ratio sets the warm-up")
    ratio, why = (WARMUP_RATIO, "") if steps is None else (None, "training.warmup_steps sets the warm-up")
    settings["warmup_steps"] = steps
    settings["warmup_ratio"] = read.value("training.warmup_ratio", "warmup_ratio", ratio, why)
    return settings | {"learning_rate": _learning_rate(fields, shape)}


def _learning_rate(fields: Fields, shape: Shape | None) -> float:
    rate, why = UNKNOWN_SIZE_RATE
    if shape is not None:
        rate, why = next((rate, why) for most, rate, why in LEARNING_RATES if shape.parameters <= most)
    factor = fields.send(
        "training.learning_rate_multiplier",
        "learning_rate",
        default="1",
        convert=lambda value: value * rate,
        note=f"a factor on the local default rate of {rate:g} ({why})",
    )
    if factor is not None:
        fields.send("training.learning_rate", "learning_rate", default="set by training.learning_rate_multiplier")
        return float(factor)
    given = fields.send("training.learning_rate", "learning_rate", default=f"{rate:g}: {why}")
    return float(rate if given is None else given)


def _evaluation(read: _Resolver, has_validation: bool) -> tuple[int, EarlyStop | None]:
    fields = read.fields
    patience = fields.peek("evaluation.early_stopping.patience")
    lacking = "there are no validation rows; set data.validation or data.split.validation"
    if not has_validation:
        if fields.peek("evaluation.evaluations"):
            fields.refuse("evaluation.evaluations", lacking)
        else:
            read.value("evaluation.evaluations", "evaluations", 0, lacking)
        for path in ("patience", "min_delta"):
            fields.refuse_if_set(f"evaluation.early_stopping.{path}", lacking)
        return 0, None
    default = max(EVALUATIONS, 2 * (patience or 0))
    evaluations = read.value("evaluation.evaluations", "evaluations", default, "spread evenly; the best adapter is kept")
    if patience is None or not evaluations:
        why = "evaluation.evaluations is 0" if patience is not None else "it has no effect without evaluation.early_stopping.patience"
        if patience is None:
            read.value("evaluation.early_stopping.patience", "early_stopping.patience", None, "no early stopping")
        else:
            fields.refuse("evaluation.early_stopping.patience", why)
        fields.refuse_if_set("evaluation.early_stopping.min_delta", why)
        return evaluations, None
    return evaluations, EarlyStop(
        patience=read.value("evaluation.early_stopping.patience", "early_stopping.patience", None),
        min_delta=read.value("evaluation.early_stopping.min_delta", "early_stopping.min_delta", 0.0),
    )


# -- cost, time and warnings -------------------------------------------------------------------------------------------


def _passes(config: TrainConfig, rows: int) -> float:
    """Passes over the training rows that the run makes."""
    return total_steps(rows, config.batch_size, config.epochs, config.steps) * config.batch_size / max(1, rows)


def _time(config: TrainConfig, data: JobData, shape: Shape | None, machine: Hardware) -> Duration:
    trained = file_tokens(data.train) * _passes(config, data.train.rows)
    evaluated = file_tokens(data.validation) * config.evaluations if data.validation else Range(low=0, high=0)
    return training_time(shape, trained, evaluated, machine)


def _cost(usd_per_hour: float | None, time: Duration) -> Cost:
    """No vendor bills a local run. The machine's own cost is added only when the user says what an hour of it costs."""
    basis = "own hardware: no bill from a vendor"
    if usd_per_hour is None:
        unknown = "; the cost of the machine itself is not known and not part of this (set options.local.gpu_usd_per_hour)"
        return Cost(lines=(CostLine(item="vendor charge: none", usd=Range(low=0, high=0), basis=basis + unknown),))
    hours = time.seconds * (1 / 3600) if time.seconds else None
    machine = CostLine(
        item="machine time",
        usd=hours * usd_per_hour if hours else None,
        basis=f"{_span(hours)} hours x {usd_per_hour:g} USD per hour (options.local.gpu_usd_per_hour)",
    )
    return Cost(lines=(CostLine(item="vendor charge: none", usd=Range(low=0, high=0), basis=basis), machine))


def _span(hours: Range | None) -> str:
    return f"{hours.low:.3g} to {hours.high:.3g}" if hours else "an unknown number of"


def _warnings(
    config: TrainConfig, data: JobData, offering: Offering, shape: Shape | None, machine: Hardware, day: date
) -> tuple[PlanWarning, ...]:
    found = list(lifetime_warnings(offering, day))
    carried = packaged_name(offering.vendor_id)
    if carried is not None:
        found.append(PlanWarning(code="base-precision", message=f"{offering.model}: {packaged_models()[carried]['note']}"))
    longest = data.train.tokens.longest_row
    limit = config.max_seq_length or (shape.context if shape else None)
    if limit is not None and longest > limit:
        message = f"the longest row has up to {longest} tokens and at most {limit} are trained: the job fails if it is really longer"
        found.append(PlanWarning(code="sequence-length", message=message))
    found += _memory_warning(config, min(longest, limit or longest), shape, machine)
    return tuple(found)


def _memory_warning(config: TrainConfig, tokens: int, shape: Shape | None, machine: Hardware) -> list[PlanWarning]:
    room = machine.gpu_memory if machine.gpu else machine.memory
    if shape is None or room is None:
        return []
    need = memory_bytes(
        shape,
        rank=config.adapter.rank,
        micro_batch=config.micro_batch_size,
        tokens=tokens,
        dtype=config.dtype,
        checkpointing=machine.gpu is not None,
    )
    if need is None:
        weights = shape.parameters * (2 if config.dtype == "bf16" else 4)
        if weights <= room:
            return []
        message = f"the weights alone need {weights / GIB:.1f} GiB and this machine has {room / GIB:.1f} GiB"
        return [PlanWarning(code="memory", message=message)]
    if need.high <= room:
        return []
    certainly = "will not" if need.low > room else "may not"
    message = (
        f"training {certainly} fit: it needs {need.low / GIB:.1f} to {need.high / GIB:.1f} GiB and {machine.gpu or 'this machine'} has "
        f"{room / GIB:.1f} GiB; raise training.gradient_accumulation, shorten the rows, or choose a smaller model"
    )
    return [PlanWarning(code="memory", message=message)]
