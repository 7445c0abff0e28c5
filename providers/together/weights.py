"""A tuned model's archive from Together.

``GET /v1/finetune/download`` answers with a .tar.zst (SDK together 3.1.1, ``resources/fine_tuning.py``, ``content``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneport.core.errors import UsageError
from tuneport.core.provider import OnProgress
from tuneport.core.retry import retrying
from tuneport.providers.fetching import Part, intact, kept_in
from tuneport.providers.together.errors import translated

if TYPE_CHECKING:
    import together

Kind = Literal["adapter", "merged"]
"""Of a LoRA job: the adapter alone, or the base model with the adapter merged in (where Together makes one)."""

_ARCHIVES = (b"\x28\xb5\x2f\xfd", b"\x1f\x8b")
"""First bytes of zstd and gzip."""


def archive(
    client: together.Together,
    job: Mapping[str, Any],
    folder: Path,
    *,
    kind: Kind | None,
    step: int | None,
    on_progress: OnProgress | None,
    sleep: Callable[[float], None],
) -> Path:
    """The path of the archive, once all of it is there. An archive that is there already, and unharmed, is not fetched again.

    Raises ProviderError when it does not arrive whole, UsageError when the job has no such archive or the folder cannot take it.
    """
    word = _wanted(job, kind)
    name = "--".join(part for part in re.split(r"[^\w.+-]+", str(job.get("model_output_name") or job["id"])) if part)
    stem = f"{name}-step-{step}" if step is not None else f"{name}-{word}" if word != "model_output_path" else name
    done = next((path for suffix in (".tar.zst", ".tar.gz") if intact(path := folder / f"{stem}{suffix}")), None)
    if done is not None:
        return done
    with kept_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
    part = Part(folder / stem)
    wanted: dict[str, Any] = {"ft_id": job["id"], "checkpoint": word} | ({"checkpoint_step": step} if step is not None else {})

    def bring() -> None:
        with translated():
            part.bring(
                lambda headers: client.fine_tuning.with_streaming_response.content(**wanted, extra_headers=headers), stem, on_progress
            )

    retrying(bring, sleep=sleep)
    target = folder / (stem + (".tar.gz" if "x-tar" in part.headers.get("content-type", "").lower() else ".tar.zst"))
    part.keep(target, "Together", begins=_ARCHIVES)
    return target


def _wanted(job: Mapping[str, Any], kind: Kind | None) -> str:
    tuned = job.get("training_type")
    if isinstance(tuned, Mapping) and tuned.get("type") == "Full":
        if kind is not None:
            raise UsageError(f"job {job['id']} tuned the full model and has no {kind} weights", fix="leave the kind out")
        return "model_output_path"
    return kind or "adapter"
