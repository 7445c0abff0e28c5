"""A JobSpec as the exact configuration of a local training run (``local_backend.config.TrainConfig``). Pure; imports no torch.

Every unset field gets a value here, shown in its outcome: the worker has no defaults of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from tuneport.core.catalogue import Offering, lifetime_warnings, load_catalogue
from tuneport.core.data.facts import DatasetFacts, Feature, JobData
from tuneport.core.errors import MissingExtraError, ProviderError
from tuneport.core.money import Cost, CostLine, Duration, Range
from tuneport.core.plan import BELONGS_TO, Fields, MachineFit, Plan, PlanWarning
from tuneport.core.spec import PREFERENCE_METHODS, JobSpec
from tuneport.local_backend.config import LOW_RANK, Adapter, EarlyStop, PreferenceLoss, Rewards, Tracking, TrainConfig
from tuneport.local_backend.drawing import MAX_ROWS, Draws, rft_time
from tuneport.local_backend.estimate import (
    GIB,
    QUANTISED,
    Hardware,
    adapter_parameters,
    detect_hardware,
    memory_bytes,
    training_time,
)
from tuneport.local_backend.fit import Fit, Load, completed, fit, kinds, packs, padded
from tuneport.local_backend.grader import grader_fault
from tuneport.local_backend.models import Shape, packaged_models, packaged_name, shape_of
from tuneport.local_backend.parent import Parent, find_parent
from tuneport.local_backend.records import RECORD
from tuneport.local_backend.schedule import total_steps
from tuneport.local_backend.support import local_facts, refused_combination, unfit_model
from tuneport.local_backend.tracking import require_trackers
from tuneport.providers.common import DataRules, file_tokens, refuse_unfit_data, send_validation, uploads_for

OPERATION = "python -m tuneport.local_backend.train JOBDIR"

UNSUPPORTED: Mapping[str, str] = {
    "training.packing": "rows are packed by themselves where that changes nothing: SFT of Llama-family models on a GPU",
    "reinforcement.reasoning_effort": "a local model has no setting for its reasoning effort",
    "distillation": "the local backend writes no teacher's answers",
    "export.hub_repo": "this version uploads nothing; the adapter's folder can be pushed with `hf upload`",
}
"""What the local backend does not offer: field, or prefix of a group, -> reason."""

CANNOT_CARRY: Mapping[Feature, str] = {
    "images": "this version trains on text only",
    "row_weights": "this version gives every row the same weight",
    "prompt_only": "the rows end with the user, and there is no answer to learn",
}
NO_ANSWERS = "the rows end with an answer, and in rft the model writes it: move it into a column for the grader"

SAMPLES = 8
SAMPLES_WHY = "TRL's GRPOConfig"
OUTPUT_TOKENS = 256
OUTPUT_TOKENS_WHY = "TRL's GRPOConfig; an answer cut off there is graded as it stands"
PIECE = 2048
RANK = 16
RANK_WHY = "field guide: 16 to 64 for LoRA; the small end suits small data"
DROPOUT = 0.0
DROPOUT_WHY = "none: the best checkpoint by validation loss guards against overfitting, and the fused layers need no dropout"
EPOCHS = 3.0
EPOCHS_WHY = "field guide: 3 epochs, most runs overfit before the fifth"
BATCH = 8
BATCH_WHY = "small batches suit LoRA (LoRA Without Regret, 2025) and small data"
LARGE_MODEL, LARGE_BATCH = 0.5e9, 16
LARGE_BATCH_WHY = "field guide: an effective batch of 16"
"""For SFT of models with more parameters."""
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


def compile_plan(
    spec: JobSpec, data: JobData, today: date | None = None, hardware: Hardware | None = None, jobs: Path | None = None
) -> Plan:
    """The plan of this spec on this machine. ``hardware`` is detected when None; ``jobs`` is where the folders of earlier jobs lie.

    Raises CatalogueError when the base model is neither known, nor a path, nor of the form of a hub id.
    """
    day = today or date.today()
    offering = _offering(spec)
    shape = shape_of(offering.vendor_id) or (Shape(parameters=offering.parameters_b * 1e9) if offering.parameters_b else None)
    fields = Fields(spec, "local", UNSUPPORTED)
    machine = hardware or detect_hardware(spec.options.local.device or "auto")

    _method(fields)
    if not fields.refused("method"):  # what the rows of a refused method hold is beside the point
        refuse_unfit_data(fields, data, _data_rules(spec))
    config = _config(fields, data, offering, shape, machine, _parent(fields, offering, jobs))
    load = _load(config, data.train)
    here = fit(config, shape, load, machine) if machine.gpu else None
    time = _time(config, data, shape, machine, here)
    time = time.model_copy(update={"basis": f"{time.basis}; tokens: {data.train.tokens.tokenizer}"})
    payload: dict[str, JsonValue] = config.model_dump(mode="json")
    passes = config.epochs if config.epochs and not config.steps else _passes(config, data.train)
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
        epochs=Range(low=passes, high=passes),
        warnings=_warnings(config, data, offering, shape, machine, here, day),
        machines=_machines(config, data, shape, load, machine),
    )


def _offering(spec: JobSpec) -> Offering:
    """What the catalogue says of the model; a model that comes in a Python package is known without it."""
    named = spec.model_for("local")
    if named is not None and packaged_name(named) is not None and load_catalogue().name_of(named) is None:
        return Offering(named, "local", named, serving=("local",))
    return load_catalogue().offering(spec, "local")


def _method(fields: Fields) -> None:
    method = fields.spec.method
    reason = local_facts()["lacks"].get(method)
    if reason:
        fields.refuse("method", f"{reason}; {method} is never replaced by another method")
    else:
        fields.send("method", "method", default="sft")


def _data_rules(spec: JobSpec) -> DataRules:
    """What the rows may hold: rft wants prompts, the others answers."""
    if spec.method != "rft":
        return DataRules(cannot_carry=CANNOT_CARRY)
    carried: dict[Feature, str] = {feature: reason for feature, reason in CANNOT_CARRY.items() if feature != "prompt_only"}
    return DataRules(cannot_carry=carried, needs={"prompt_only": NO_ANSWERS})


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


def _parent(fields: Fields, offering: Offering, jobs: Path | None) -> Parent | None:
    """The earlier adapter that the job begins with; None for a fresh one, and when it is refused."""
    earlier = fields.peek("continue_from")
    parent = None
    if earlier is not None:
        try:
            parent = find_parent(earlier, jobs)
            fault = parent.base_fault(offering.vendor_id)
        except ProviderError as error:
            fault = str(error)
        if fault:
            fields.refuse("continue_from", fault)
            return None
    convert = (lambda _: str(parent.folder)) if parent and str(parent.folder) != earlier else None
    note = f"the adapter there is copied into the job and trained further (weights {parent.digest})" if parent else ""
    fields.send("continue_from", "parent.path", default="starts from the base model", convert=convert, note=note)
    return parent


def _config(
    fields: Fields, data: JobData, offering: Offering, shape: Shape | None, machine: Hardware, parent: Parent | None
) -> TrainConfig:
    read = _Resolver(fields)
    adapter = _adapter(read, parent, offering.vendor_id)
    template = parent.folder / "chat_template.jinja" if parent else None
    own, whose = (str(template), "earlier adapter") if template and template.exists() else (None, "model")
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
        method=fields.spec.method,
        adapter=adapter,
        parent=parent.setting if parent else None,
        preference=_preference(read),
        rewards=_rewards(read),
        **_length(read),
        **_batch(read, shape, machine),
        **_schedule(read, shape, adapter.kind),
        weight_decay=read.value("training.weight_decay", "weight_decay", 0.0),
        max_grad_norm=read.value("training.max_grad_norm", "max_grad_norm", 1.0),
        max_seq_length=_max_length(read, shape),
        loss_on=_loss_on(read),
        evaluations=evaluations,
        checkpoints=read.value("evaluation.checkpoints", "checkpoints", CHECKPOINTS, "the last one at the end of the run"),
        early_stopping=early_stopping,
        train_share=read.value("options.local.train_share", "train_share", 1.0, "all rows"),
        overfitting_guard=_guard(fields, evaluations),
        seed=read.value("training.seed", "seed", 0),
        device=read.value("options.local.device", "device", "auto", "the GPU when torch sees one"),
        dtype=read.value("options.local.dtype", "dtype", "bf16", "precision of the base; the adapter learns in fp32"),
        gpu_memory_gib=read.value("options.local.gpu_memory_gib", "gpu_memory_gib", None, "all that is free on the GPU"),
        trust_remote_code=bool(read.value("options.local.trust_remote_code", "trust_remote_code", None, "no model's code is run")),
        chat_template=read.value("options.local.chat_template", "chat_template", own, f"the {whose}'s own template"),
        tracking=_tracking(read),
        validation_file="${upload:validation}" if has_validation else None,
    )


def _model(fields: Fields, offering: Offering) -> None:
    changed = fields.peek("model") != offering.vendor_id
    convert = (lambda _: offering.vendor_id) if changed else None
    fields.send("model", "model", default="", convert=convert, note="the name on this machine" if changed else "")


def _adapter(read: _Resolver, parent: Parent | None, model: str) -> Adapter:
    fields, method = read.fields, read.fields.spec.method
    earlier = parent.adapter if parent else None
    usual = earlier.kind if earlier else "lora"
    wanted = fields.peek("tuning.kind") or usual
    reason = refused_combination(method, wanted) or unfit_model(model, wanted)
    # In place of a refused kind, so that the plan goes as far as it can. It cannot be submitted.
    kind: Any = "lora" if reason else wanted
    if reason:
        fields.refuse("tuning.kind", f"{reason}; no kind of tuning is ever replaced by another")
    elif earlier and wanted != earlier.kind and {wanted, earlier.kind} != {"lora", "qlora"}:  # the two differ in the base's precision only
        fields.refuse("tuning.kind", f"the earlier adapter is one of {earlier.kind}, and training goes on with it")
        kind = earlier.kind
    else:
        read.value("tuning.kind", "adapter.kind", usual, "that of the earlier adapter" if earlier else "")
    virtual = None
    if kind in ("prefix", "prompt"):
        tokens = local_facts()["tunings"][kind]["virtual_tokens"]
        virtual = read.value("options.local.virtual_tokens", "adapter.virtual_tokens", tokens, "PEFT's examples")
    else:
        fields.refuse_if_set("options.local.virtual_tokens", f"{kind} tuning has no virtual tokens; prefix and prompt have")
    if kind not in LOW_RANK:
        for name in ("rank", "alpha", "dropout", "target_modules"):
            fields.refuse_if_set(f"tuning.{name}", f"{kind} tuning has no {name.replace('_', ' ')}; LoRA and its kin have")
        return Adapter(kind=kind, virtual_tokens=virtual)

    def shape(name: str, default: Any, why: str) -> Any:
        """A setting that an earlier adapter has fixed."""
        if earlier is None:
            return read.value(f"tuning.{name}", f"adapter.{name}", default, why)
        fixed, given = getattr(earlier, name), fields.peek(f"tuning.{name}")
        if given is None or given == fixed:
            read.value(f"tuning.{name}", f"adapter.{name}", fixed, "that of the earlier adapter")
        else:
            fields.refuse(f"tuning.{name}", f"the earlier adapter has {fixed}, and training goes on with it")
        return fixed

    rank = shape("rank", RANK, RANK_WHY)
    return Adapter(
        kind=kind,
        rank=rank,
        alpha=shape("alpha", *_alpha(kind, rank)),
        dropout=read.value("tuning.dropout", "adapter.dropout", DROPOUT, DROPOUT_WHY),
        target_modules=shape("target_modules", "all-linear", "LoRA Without Regret, 2025: all layers"),
    )


def _alpha(kind: str, rank: int) -> tuple[float, str]:
    """The default alpha: an update scaled by 2 in every kind."""
    if kind == "rslora":
        return float(f"{2 * rank**0.5:.6g}"), "twice the rank's square root, by which rslora divides"
    return 2.0 * rank, "twice the rank (field guide)"


def _preference(read: _Resolver) -> PreferenceLoss | None:
    method = read.fields.spec.method
    if method not in PREFERENCE_METHODS:
        return None
    facts = local_facts()["methods"][method]

    def of(path: str, default: Any, why: str = "") -> Any:
        """A setting of this method; one of another method has its outcome already."""
        return read.value(f"preference.{path}", f"preference.{path}", default, why) if method in BELONGS_TO[f"preference.{path}"] else None

    normalised: bool | None = True if method == "simpo" else None
    if method == "simpo" and read.fields.peek("preference.length_normalised") is False:
        read.fields.refuse("preference.length_normalised", "SimPO always divides by the answer's length")
    else:
        normalised = of("length_normalised", method == "simpo")
    return PreferenceLoss(
        beta=of("beta", facts["beta"], facts["source"]),
        sft_weight=of("sft_weight", 0.0),
        length_normalised=normalised,
        simpo_gamma=of("simpo_gamma", facts.get("gamma"), facts["source"]),
        desirable_weight=of("desirable_weight", 1.0),
        undesirable_weight=of("undesirable_weight", 1.0),
    )


def _rewards(read: _Resolver) -> Rewards | None:
    fields = read.fields
    if fields.spec.method != "rft":
        return None
    grader = fields.peek("reinforcement.grader")
    fault = "method rft needs a grader" if grader is None else grader_fault(grader)
    if fault:
        fields.refuse("reinforcement.grader", fault)
    else:
        fields.send("reinforcement.grader", "rewards.grader", default="", note="carried out on this machine")
    samples = read.value("reinforcement.samples_per_prompt", "rewards.samples_per_prompt", SAMPLES, SAMPLES_WHY)
    longest = read.value("reinforcement.max_prompt_length", "rewards.max_prompt_length", None, "the model's own limit")
    return Rewards(
        grader={} if fault else grader,
        samples_per_prompt=samples,
        max_prompt_length=longest,
        max_output_tokens=read.value("reinforcement.max_output_tokens", "rewards.max_output_tokens", OUTPUT_TOKENS, OUTPUT_TOKENS_WHY),
    )


def _max_length(read: _Resolver, shape: Shape | None) -> int | None:
    context = shape.context if shape else None
    given = read.fields.peek("training.max_seq_length")
    if given is not None and context is not None and given > context:
        read.fields.refuse("training.max_seq_length", f"the model reads {context:,} tokens at most")
        return context
    if read.fields.spec.method == "cpt":
        piece = min(PIECE, context or PIECE)
        length: int = read.value("training.max_seq_length", "max_seq_length", piece, "a longer document is cut into pieces of this length")
        return length
    why = "the model's own limit; a longer row fails the job"
    found: int | None = read.value("training.max_seq_length", "max_seq_length", None, why)
    return found


def _loss_on(read: _Resolver) -> Any:
    """sft chooses; what the other methods learn from follows from the method."""
    fields, method = read.fields, read.fields.spec.method
    if method == "sft":
        return read.value("training.loss_on", "loss_on", "completions")
    fixed = "all" if method == "cpt" else "completions"
    if fields.peek("training.loss_on") in (None, fixed):
        read.value("training.loss_on", "loss_on", fixed, f"what {method} learns from")
    else:
        fields.refuse("training.loss_on", f"{method} always has its loss on {'every token' if fixed == 'all' else 'the answers'}")
    return fixed


def _length(read: _Resolver) -> dict[str, Any]:
    steps = read.value("training.steps", "steps", None, "training.epochs sets the length")
    default, why = (EPOCHS, EPOCHS_WHY) if steps is None else (None, "training.steps sets the length")
    return {"steps": steps, "epochs": read.value("training.epochs", "epochs", default, why)}


def _batch(read: _Resolver, shape: Shape | None, machine: Hardware) -> dict[str, Any]:
    """The batch, and its division when that is left open: into micro-batches of at most ``MICRO_BATCH`` sequences, but not for
    SFT on a GPU, where the worker goes by memory."""
    fields, method = read.fields, read.fields.spec.method
    given, wanted = fields.peek("training.gradient_accumulation") or 1, fields.peek("training.batch_size")
    fewest = 2 if method == "kto" else 1
    supervised = method in ("sft", "cpt")
    large = supervised and shape is not None and shape.parameters > LARGE_MODEL
    usual, usual_why = (LARGE_BATCH, LARGE_BATCH_WHY) if large else (BATCH, BATCH_WHY)
    pair = "kto compares each answer with one to another prompt of the same micro-batch, which then needs two rows at least"
    if wanted is not None and wanted < fewest:
        fields.refuse("training.batch_size", pair)
        size = usual
    else:
        size = read.value("training.batch_size", "batch_size", -(-usual // given) * given, usual_why)
    sequences = (fields.peek("reinforcement.samples_per_prompt") or SAMPLES) if method == "rft" else 1
    rows = size if supervised and machine.gpu else max(fewest, MICRO_BATCH // sequences)
    divisions = [n for n in range(1, size + 1) if size % n == 0 and size // n >= fewest]
    parts = next((n for n in divisions if size // n <= rows), divisions[-1])  # a batch of 13 has none between 2 and 8
    rows = max(rows, size // parts)
    if size // given < fewest:
        fields.refuse("training.gradient_accumulation", pair)
        accumulation = parts
    else:
        why = f"micro-batches of at most {rows} row{'s' if rows > 1 else ''}{', and fewer where memory asks for it' if machine.gpu else ''}"
        accumulation = read.value("training.gradient_accumulation", "gradient_accumulation", parts, why)
    return {"batch_size": size, "gradient_accumulation": accumulation, "micro_batch_size": size // accumulation}


def _schedule(read: _Resolver, shape: Shape | None, kind: str) -> dict[str, Any]:
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
    return settings | {"learning_rate": _learning_rate(fields, shape, kind)}


def _learning_rate(fields: Fields, shape: Shape | None, kind: str) -> float:
    rate, why = _default_rate(fields.spec.method, kind, shape)
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


def _default_rate(method: str, kind: str, shape: Shape | None) -> tuple[float, str]:
    if method in ("sft", "cpt") and kind in LOW_RANK:
        if shape is None:
            return UNKNOWN_SIZE_RATE
        return next((rate, why) for most, rate, why in LEARNING_RATES if shape.parameters <= most)
    facts = local_facts()
    base = facts["methods"].get(method, facts["methods"]["sft"])["rate"]
    factor = facts["tunings"][kind]["rate_factor"]
    why = f"TRL's {base:g} for full tuning by {method}" + (f", times {factor} for {kind}" if factor != 1 else "")
    return float(f"{base * factor:.3g}"), why


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


def _guard(fields: Fields, evaluations: int) -> bool:
    if not evaluations:
        fields.refuse_if_set("options.local.overfitting_guard", "there is no validation to see overfitting by")
        return True
    why = "on: the run stops when the validation loss rises while the training loss falls (field guide)"
    return fields.send("options.local.overfitting_guard", "overfitting_guard", default=why) is not False


def _tracking(read: _Resolver) -> Tracking:
    """tracking.wandb, which the vendors know too, brings W&B in as options.local.tracking does."""
    fields = read.fields
    named = tuple(dict.fromkeys(read.value("options.local.tracking", "tracking.trackers", (), "none; events keep every metric")))
    asked = any(fields.peek(f"tracking.wandb.{name}") is not None for name in ("project", "entity", "name", "tags"))
    if asked and "wandb" not in named:
        named = (*named, "wandb")
    without = {name: f"options.local.tracking does not name {name}" for name in ("wandb", "mlflow") if name not in named}
    if "wandb" in without:
        fields.refuse_if_set("options.local.wandb_mode", without["wandb"])
        online = False
    else:
        why = "on this machine only; `wandb sync` sends it later"
        convert = partial(eq, "online")
        online = bool(fields.send("options.local.wandb_mode", "tracking.wandb_online", default=f"offline: {why}", convert=convert))
    if "mlflow" in without:
        fields.refuse_if_set("options.local.mlflow_uri", without["mlflow"])
        address = None
    else:
        address = read.value("options.local.mlflow_uri", "tracking.mlflow_uri", None, "a SQLite file in the job's folder")

    def of(name: str, wire: str, default: str) -> Any:
        return fields.send(f"tracking.wandb.{name}", f"tracking.{wire}", default=default if "wandb" in named else "no W&B")

    return Tracking(
        trackers=named,
        project=of("project", "project", "tuneport"),
        entity=of("entity", "entity", "that of the key"),
        run_name=of("name", "run_name", "the job's"),
        run_tags=of("tags", "run_tags", "none"),
        wandb_online=online,
        mlflow_uri=address,
    )


# -- cost, time and warnings -------------------------------------------------------------------------------------------


def _load(config: TrainConfig, facts: DatasetFacts) -> Load:
    """The rows as the worker makes them: cpt cuts its documents."""
    most = config.max_seq_length if config.method == "cpt" and config.max_seq_length else facts.tokens.longest_row
    return Load(min(most, facts.tokens.high / max(1, facts.rows)), min(most, facts.tokens.longest_row))


def _sequences(config: TrainConfig, facts: DatasetFacts) -> int:
    """How many sequences the worker makes of the rows, about: a pair is two in kto, a long document several pieces in cpt."""
    if config.method == "kto" and facts.kind == "preference":
        return 2 * facts.rows
    if config.method == "cpt" and config.max_seq_length and facts.tokens.longest_row > config.max_seq_length:
        return round(facts.rows / 2 + facts.tokens.high / config.max_seq_length)  # the last piece of a document is half full on average
    return facts.rows


def _passes(config: TrainConfig, facts: DatasetFacts) -> float:
    """Passes over the training rows that the run makes."""
    sequences = max(1, _sequences(config, facts))
    used = max(1, round(sequences * config.train_share))
    return total_steps(used, config.batch_size, config.epochs, config.steps) * config.batch_size / sequences


def _time(config: TrainConfig, data: JobData, shape: Shape | None, machine: Hardware, found: Fit | None) -> Duration:
    trained = file_tokens(data.train) * _passes(config, data.train)
    evaluated = file_tokens(data.validation) * config.evaluations if data.validation else Range(low=0, high=0)
    passes = local_facts()["methods"].get(config.method, {}).get("flops", 1.0)
    full = 1.5 if config.adapter.kind == "full" else 1.0  # 6 FLOPs per parameter and token instead of 4
    if config.rewards is not None:
        draws, whole = _draws(config, config.rewards, data), completed(shape) or shape if shape else None
        return rft_time(draws, whole, machine, width=_width(config), effort=full)
    packed = found is not None and shape is not None and packs(config, shape)
    slowdown = found.slowdown if found else 1.0
    return training_time(shape, trained * (passes * full), evaluated * passes, machine, packed=packed, slowdown=slowdown)


def _draws(config: TrainConfig, rewards: Rewards, data: JobData) -> Draws:
    rows = data.train.rows
    held = data.validation.rows if data.validation and config.validation_file else 0
    batch = min(held, MAX_ROWS)
    return Draws(
        steps=total_steps(max(1, round(rows * config.train_share)), config.batch_size, config.epochs, config.steps),
        prompts=config.batch_size,
        samples=rewards.samples_per_prompt,
        prompt_tokens=file_tokens(data.train).high / max(1, rows),
        longest=rewards.max_output_tokens,
        validations=config.evaluations * -(-held // batch) if held else 0,
        validated=batch,
    )


def _width(config: TrainConfig) -> Range:
    """Bytes moved for each parameter of the base in a pass; in 4 bits it may be unpacked to memory and read again."""
    if config.adapter.kind == "qlora":
        return Range(low=QUANTISED, high=QUANTISED + 4)
    width = 4 if config.dtype == "fp32" or config.adapter.kind == "full" else 2
    return Range(low=width, high=width)


def _machines(config: TrainConfig, data: JobData, shape: Shape | None, load: Load, machine: Hardware) -> tuple[MachineFit, ...]:
    """The job on every kind of GPU that is known, and on this machine's."""
    if shape is None:
        return ()
    found = []
    for kind in ([machine] if machine.gpu and machine.gpu_memory else []) + kinds():
        one = fit(config, shape, load, kind)
        there = one.fits is not False
        found.append(
            MachineFit(
                name=one.gpu,
                memory_gib=round(one.memory / GIB, 1),
                peak_gib=one.peak * (1 / GIB) if one.peak else None,
                fits=one.fits,
                seconds=_time(config, data, shape, kind, one).seconds if there else None,
                here=kind is machine,
                note=one.note,
            )
        )
    return tuple(found)


def _cost(usd_per_hour: float | None, time: Duration) -> Cost:
    """No vendor bills a local run. The machine's own cost is added only when the user says what an hour of it costs."""
    basis = "none, on own hardware"
    if usd_per_hour is None:
        unknown = "; the cost of the machine itself is not known and not part of this (set options.local.gpu_usd_per_hour)"
        return Cost(lines=(CostLine(item="vendor charge", usd=Range(low=0, high=0), basis=basis + unknown),))
    hours = time.seconds * (1 / 3600) if time.seconds else None
    machine = CostLine(
        item="machine time",
        usd=hours * usd_per_hour if hours else None,
        basis=f"{_span(hours)} hours x {usd_per_hour:g} USD per hour (options.local.gpu_usd_per_hour)",
    )
    return Cost(lines=(CostLine(item="vendor charge", usd=Range(low=0, high=0), basis=basis), machine))


def _span(hours: Range | None) -> str:
    return f"{hours.low:.3g} to {hours.high:.3g}" if hours else "an unknown number of"


def _warnings(
    config: TrainConfig, data: JobData, offering: Offering, shape: Shape | None, machine: Hardware, here: Fit | None, day: date
) -> tuple[PlanWarning, ...]:
    found = list(lifetime_warnings(offering, day))
    carried = packaged_name(offering.vendor_id)
    if carried is not None:
        found.append(PlanWarning(code="base-precision", message=f"{offering.model}: {packaged_models()[carried]['note']}"))
    longest = _load(config, data.train).longest
    limit = config.max_seq_length or (shape.context if shape else None)
    if limit is not None and longest > limit:
        message = f"the longest row has up to {longest} tokens and at most {limit} are trained: the job fails if it is really longer"
        found.append(PlanWarning(code="sequence-length", message=message))
    if config.trust_remote_code:
        message = f"options.local.trust_remote_code: Python code that comes with {config.model} runs on this machine, with your rights"
        found.append(PlanWarning(code="remote-code", message=f"{message}, whenever the model is loaded"))
    try:
        require_trackers(config.tracking)
    except MissingExtraError as error:
        found.append(PlanWarning(code="tracking", message=f"it cannot be submitted from here: {error}"))
    leaving = list(_outside(config.tracking))
    if leaving:
        found.append(PlanWarning(code="network", message=f"the run's metrics and settings leave this machine: to {' and '.join(leaving)}"))
    found += _memory_warning(config, min(longest, limit or longest), shape, machine, here)
    return tuple(found)


def _outside(tracking: Tracking) -> Iterator[str]:
    """Where tracking sends what it is told, off this machine."""
    if tracking.wandb_online:
        yield "W&B"
    if tracking.mlflow_uri and not tracking.mlflow_uri.startswith(("sqlite:", "file:", "/", ".")):
        yield f"MLflow at {tracking.mlflow_uri}"


def _memory_warning(
    config: TrainConfig, tokens: int, shape: Shape | None, machine: Hardware, here: Fit | None
) -> list[PlanWarning]:
    room = machine.gpu_memory if machine.gpu else machine.memory
    if shape is None or room is None:
        return []
    if here is not None and here.fits:
        return []
    trained = adapter_parameters(shape, config.adapter.rank) if config.adapter.rank else None
    need = here.peak if here else memory_bytes(padded(config, shape, trained, tokens)) if trained else None
    if need is None:
        weights = shape.parameters * _bytes_per_weight(config)
        if weights <= room:
            return []
        what = "weights, gradients and optimiser state" if config.adapter.kind == "full" else "the weights"
        message = f"{what} alone need {weights / GIB:.1f} GiB and this machine has {room / GIB:.1f} GiB"
        return [PlanWarning(code="memory", message=message)]
    if need.high <= room:
        return []
    certainly = "will not" if need.low > room or (here and here.fits is False) else "may not"
    message = (
        f"training {certainly} fit: it needs {need.low / GIB:.1f} to {need.high / GIB:.1f} GiB and {machine.gpu or 'this machine'} has "
        f"{room / GIB:.1f} GiB; raise training.gradient_accumulation, shorten the rows, or choose a smaller model"
    )
    return [PlanWarning(code="memory", message=message)]


def _bytes_per_weight(config: TrainConfig) -> float:
    """Bytes that a parameter of the base takes: full tuning holds fp32 weights, gradients and two moments (16 bytes)."""
    reference = 4 if config.method in ("dpo", "kto") else 0
    if config.adapter.kind == "full":
        return 16 + reference
    return 0.55 if config.adapter.kind == "qlora" else 2 if config.dtype == "bf16" else 4
