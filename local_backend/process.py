"""Starting worker processes: the same interpreter, the same tuneport, an environment that suits training. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path
from typing import Any

import tuneport
from tuneport.core import errors
from tuneport.core.errors import ProviderError, TuneportError
from tuneport.core.secrets import redact
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.quantise import Rounding, require_rounding
from tuneport.local_backend.turns import enter, gpu_name

LOCK_VARIABLE = "TUNEPORT_LOCK_FD"
"""Names the inherited descriptor of the job's lock."""
ATTEMPT_VARIABLE = "TUNEPORT_ATTEMPT"
"""Which attempt at the job the worker is, from 1."""

CPU_ENVIRONMENT = {
    # glibc keeps large blocks with the process instead of giving them back after every tensor: 4.8 to 2.6 s a step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""What must stand before Python starts (measured on the CPU with a 135M model, November 2026). A user's own setting wins."""


def worker_environment() -> dict[str, str]:
    """The environment of every worker: fast memory on the CPU, one GPU, no telemetry, and this very tuneport."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        **CPU_ENVIRONMENT,
        **os.environ,
        "CUDA_VISIBLE_DEVICES": visible.split(",")[0] if visible is not None else "0",
        "PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # no module of the working directory stands before an installed one
        "PYTHONPATH": _python_path(),
    }


def _python_path() -> str:
    """PYTHONPATH that finds the tuneport in use. An installed one is found anyway, and site-packages must not come first."""
    package = Path(next(iter(tuneport.__path__))).parent
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    here = [] if package in installed else [str(package)]
    return os.pathsep.join(here + [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p])


def start_worker(job: JobDir, module: str = "tuneport.local_backend.train", *, gpu: bool = False) -> bool:
    """Start a worker (by default one that trains) on the job, in a session of its own so that it outlives us.

    False when one is at work already. ``gpu``: it may want the GPU that it sees, and stands in line for it from now on.

    The lock is taken here and inherited by the worker, so that two starters never make two workers.
    """
    lock = job.take_lock()
    if lock is None:
        return False
    try:
        attempt = job.attempt() + 1
        job.clear_request()
        job.set_worker(None, attempt)
        environment = worker_environment()
        if gpu:
            enter(gpu_name(environment["CUDA_VISIBLE_DEVICES"]), job)
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(job.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=job.path,
                env=environment | {LOCK_VARIABLE: str(lock), ATTEMPT_VARIABLE: str(attempt)},
                pass_fds=(lock,),
                start_new_session=True,
            )
        job.set_worker(process.pid, attempt)
    except OSError as error:
        raise ProviderError(f"the worker cannot be started ({error})", fix="free memory or disk, then try again") from error
    finally:
        os.close(lock)
    # Reaps the worker if it ends before us; does not keep us alive.
    threading.Thread(target=process.wait, daemon=True, name=f"worker-{process.pid}").start()
    return True


def start_generation(requests: Path, stderr: Path) -> subprocess.Popen[str]:
    """Start the inference worker on a file of requests; replies come on its stdout."""
    with stderr.open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tuneport.local_backend.generate", str(requests)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=worker_environment(),
            text=True,
            encoding="utf-8",
        )


def run_export(
    adapter: Path, out: Path, *, merge: bool, gguf: str | None = None, quantize: Rounding | None = None, job: Path | None = None,
    trust: bool = False,
) -> tuple[list[Path], list[str]]:  # fmt: skip
    """Make a whole model of an adapter, in a process of its own (``local_backend.export``); returns (what was made, notes on it).

    Raises what the worker raised, and MissingExtraError without the libraries that ``quantize`` needs.
    """
    if quantize:
        require_rounding(quantize)
    with tempfile.TemporaryDirectory(prefix="tuneport-export-") as folder:
        settings = Path(folder) / "settings.json"
        document = {"adapter": str(adapter.absolute()), "out": str(out.absolute()), "merge": merge, "gguf": gguf}
        document |= {"quantize": quantize, "job": str(job.absolute()) if job else None, "trust_remote_code": trust}
        settings.write_text(json.dumps(document), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "tuneport.local_backend.export", str(settings)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=worker_environment(),
            text=True,
            encoding="utf-8",
            check=False,
        )
    reply = json.loads(done.stdout) if done.stdout.strip() else {}
    if "fault" in reply:
        raise worker_fault(reply)
    if done.returncode != 0:
        last = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise ProviderError(f"the export ended with status {done.returncode} ({redact(last)})", fix="free memory or disk, then try again")
    return [Path(file) for file in reply["files"]], reply["notes"]


def worker_fault(reply: dict[str, Any]) -> TuneportError:
    """The error that a worker's reply tells of, as the same class of error."""
    kind = getattr(errors, reply["kind"], ProviderError)
    if kind is errors.MissingExtraError:
        return errors.MissingExtraError(reply["fault"], "local")
    plain = kind if kind not in (errors.SpecError, errors.RefusedError) else ProviderError
    fault: TuneportError = plain(reply["fault"], fix=reply["fix"])
    return fault
