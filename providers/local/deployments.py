"""Serving on this machine: a process with an OpenAI-compatible server on loopback (``local_backend.server``).

A deployment's folder is named by its key and lies in ``deployments`` beside the jobs' folder; a lock in it makes sure that one
key never has two servers. The server outlives the process that started it and ends by itself when its time is up.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuneport.core.deployment import DeploymentRequest, DeploymentState, RemoteDeployment, Tuned
from tuneport.core.deployment_plan import DeploymentPlan
from tuneport.core.errors import ProviderError
from tuneport.core.money import Range
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.local_backend.jobdir import JobDir, write_atomically
from tuneport.local_backend.models import require_training_stack
from tuneport.local_backend.process import start_worker
from tuneport.providers.exchange import at, refuse_requested

MODES: Mapping[str, str] = {"server": "an OpenAI-compatible server on 127.0.0.1, one answer at a time"}
STATES: Mapping[str, DeploymentState] = {
    "starting": DeploymentState.DEPLOYING,
    "loading": DeploymentState.DEPLOYING,
    "ready": DeploymentState.READY,
    "failed": DeploymentState.FAILED,
    "ended": DeploymentState.UNDEPLOYED,
}
"""The server's phase -> state."""
ANSWER_S = 600.0
"""Longest wait for one answer of a server on this machine, which makes one at a time."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""No proxy of the environment's comes between: nothing leaves the machine."""
_END_S = 5.0
"""How long a server may take to end before it is asked about again."""


class LocalDeployer:
    """``core.provider.Deployer`` on this machine. ``answering`` gives what a tuned model needs (base, adapter, template)."""

    modes = MODES
    settle_seconds = 0.0

    def __init__(self, folder: Path, answering: Callable[[str], dict[str, Any]], usd_per_hour: float | None = None) -> None:
        self._folder, self._answering, self._usd = folder, answering, usd_per_hour

    def plan(self, tuned: Tuned, request: DeploymentRequest, stands_on: str | None = None) -> DeploymentPlan:
        """A server on a free port, or the one asked for."""
        mode = request.mode or "server"
        refuse_requested(
            "local", MODES, mode, request, stands_on,
            {
                "replicas": "one process serves on this machine",
                "hardware": "options.local.device of the job's spec says where it runs",
                "commitment": "this machine has none",
                "on": "give several jobs to `tuneport serve` to have them on one base",
            },
        )  # fmt: skip
        answering = self._answering(tuned.model)
        name = Path(tuned.job).name
        models = [{"name": name, "adapter": answering["adapter"], "chat_template": answering["chat_template"]}]
        payload: dict[str, Any] = {
            "base": answering["model"], "device": answering["device"], "dtype": answering["dtype"], "models": models,
            "trust_remote_code": answering["trust_remote_code"],
            "port": request.port or 0, "ttl_s": request.ttl_s, "idle_s": request.idle_s,
        }  # fmt: skip
        usd = self._usd or 0.0
        unknown = "nothing is billed; what this machine costs is not known"
        price = "options.local.gpu_usd_per_hour of the job's spec" if self._usd else unknown
        notes = ("it ends by itself when its time is up",) if request.ttl_s else ()
        return DeploymentPlan(
            provider="local", model=tuned.model, mode=mode, operation="start a server", payload=payload,
            usd_per_hour=Range(low=usd, high=usd), price=price, notes=notes,
        )  # fmt: skip

    def create(self, plan: DeploymentPlan, key: str) -> RemoteDeployment:
        """Start the server, once per key. Raises MissingExtraError without the libraries."""
        require_training_stack()
        found = self.find(plan, key)
        if found is not None:
            return found
        job = JobDir(self._folder / key)
        job.path.mkdir(parents=True, exist_ok=True)
        write_atomically(job.config, json.dumps(plan.payload, indent=2) + "\n")
        start_worker(job, "tuneport.local_backend.server")
        return self._seen(job)

    def find(self, plan: DeploymentPlan, key: str) -> RemoteDeployment | None:  # noqa: ARG002 -- the key is the folder's name
        """The server that was started with this key; exact at once."""
        job = JobDir(self._folder / key)
        return self._seen(job) if job.config.exists() and (job.worker_alive() or job.state() is not None) else None

    def poll(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:  # noqa: ARG002
        """Whether its server loads, answers, or has ended."""
        return self._seen(JobDir(Path(ref)))

    def finish(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """Nothing is left to do."""
        return self.poll(plan, ref)

    def remove(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """End the server and remove its folder."""
        job = JobDir(Path(ref))
        until = time.monotonic() + _END_S
        while job.worker_alive():
            if (worker := job.worker()) is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker[0], signal.SIGTERM)
            if time.monotonic() > until:
                return RemoteDeployment(ref, DeploymentState.UNDEPLOYING, "ending")
            time.sleep(0.05)
        shutil.rmtree(job.path, ignore_errors=True)
        return self.poll(plan, ref)

    def list_deployments(self) -> Iterator[RemoteDeployment]:
        """Every server that runs from this folder."""
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            seen = self._seen(JobDir(path))
            if seen.state.standing:
                yield seen

    def _seen(self, job: JobDir) -> RemoteDeployment:
        ref = str(job.path)
        if not job.config.exists():
            return RemoteDeployment(ref, DeploymentState.UNDEPLOYED, "gone")
        alive = job.worker_alive()  # looked at first: what a server that has ended wrote is then read after it
        state = job.state()
        phase = state.phase if state else "starting"
        if not alive and phase != "failed":
            return RemoteDeployment(ref, DeploymentState.UNDEPLOYED, "ended", "its server has ended")
        message = state.message if state else ""
        call_as = None
        if phase == "ready":
            port = json.loads((job.path / "address.json").read_text(encoding="utf-8"))["port"]
            name = json.loads(job.config.read_text(encoding="utf-8"))["models"][0]["name"]
            call_as = at(name, f"http://127.0.0.1:{port}")
        return RemoteDeployment(ref, STATES.get(phase, DeploymentState.UNKNOWN), phase, message, call_as)


def answers(name: str, address: str, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
    """Replies of a server of ours, in order. Raises ProviderError when it cannot be reached; a refusal is that request's error."""
    for request in requests:
        body = {"model": name, "messages": [dict(m) for m in request.messages], "max_tokens": request.max_tokens, "temperature": 0}
        began = time.monotonic()
        sent = urllib.request.Request(  # noqa: S310 -- the address is that of a server on this machine
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _DIRECT.open(sent, timeout=ANSWER_S) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                said = json.load(error)["error"]["message"]
            yield ChatReply(request.id, "", error=str(said))
            continue
        except OSError as error:
            fix = "see whether it still runs: tuneport deployments"
            raise ProviderError(f"the server at {address} cannot be reached ({error})", fix=fix, retry="no") from error
        usage, text = told["usage"], told["choices"][0]["message"]["content"]
        yield ChatReply(request.id, text, usage["prompt_tokens"], usage["completion_tokens"], time.monotonic() - began)
