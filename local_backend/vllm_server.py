"""Serving by vLLM, where it is installed and there is a GPU: one base, its adapters by name, adapters added and removed while it runs.

Flags, ranks and endpoints are those of the source of vLLM 0.33.0 (``entrypoints/common/cli_args.py``, ``config/lora.py``,
``entrypoints/serve/lora``, ``lora/peft_helper.py``; read 2026-11-22). vLLM runs in a process of its own; nothing of it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from tuneport.core.errors import ProviderError, UsageError
from tuneport.core.secrets import redact
from tuneport.local_backend.estimate import detect_hardware
from tuneport.local_backend.jobdir import write_json
from tuneport.local_backend.models import cache_dir, check_base, locate, prepare
from tuneport.local_backend.server import HOST, ServedModel, ServerConfig

Choice = Literal["auto", "vllm", "light"]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` takes (``MaxLoRARanks``)."""
SLOTS = 4
"""Adapters that one batch may mix, at least: room for those that are added later."""
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",  # opens the endpoints that add and remove adapters
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_LOOK = 0.2
_END_S = 30.0
_SWAP_S = 300.0


def choose(wanted: Choice, config: ServerConfig) -> tuple[bool, str]:
    """(by vLLM?, which server it is and why, in one sentence). Raises UsageError when vLLM is wanted and cannot do it."""
    if wanted == "light":
        return False, "served by the light server, as asked: one answer at a time"
    reason = _unfit(config) or ("" if _executable() else "vLLM is not installed")
    if wanted == "vllm":
        if reason:
            raise UsageError(f"vLLM cannot serve this: {reason}", fix="leave --server out, or give --server light")
        return True, "served by vLLM, as asked"
    machine = detect_hardware(config.device)
    if not reason and not machine.gpu:
        reason = "options.local.device is cpu" if config.device == "cpu" else "there is no GPU"
    if reason:
        return False, f"served by the light server, one answer at a time: {reason}"
    return True, f"served by vLLM, which is installed, on {machine.gpu}"


def command(config: ServerConfig, port: int) -> list[str]:
    """The call of vLLM that serves this on loopback. Raises what ``prepare`` and ``check_base`` raise."""
    adapters = [one for one in config.models if one.adapter]
    whole = [one.name for one in config.models if not one.adapter]
    told = [
        _executable() or "vllm", "serve", _base(config),
        "--host", HOST, "--port", str(port), "--dtype", _DTYPES[config.dtype],
        "--served-model-name", *(whole or [config.base]),
        "--allowed-origins", "[]",  # no page in a browser may ask
    ]  # fmt: skip
    if adapters:
        told += ["--enable-lora", "--max-loras", str(max(SLOTS, len(adapters))), "--max-lora-rank", str(_room(config))]
        told += ["--lora-modules", *(json.dumps({"name": one.name, "path": one.adapter}) for one in adapters)]
    template = next((one.chat_template for one in config.models if one.chat_template), None)
    if template:
        told += ["--chat-template", template]
    if config.trust_remote_code:
        told.append("--trust-remote-code")
    return told


def serve(config: ServerConfig, *, on_ready: Callable[[int], None]) -> None:
    """Serve until the time is up, or SIGTERM or Ctrl-C. Raises ProviderError when vLLM does not start, or ends by itself."""
    port = _free_port(config.port)
    note = _note(port)
    note.parent.mkdir(parents=True, exist_ok=True)
    log = note.with_suffix(".log")
    done = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: done.set())
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command(config, port), env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )  # fmt: skip
    try:
        while not _answers(port):
            _check(process, log)
            if done.wait(_LOOK):
                return
        write_json(note, _known(config) | {"pid": process.pid})
        on_ready(port)
        until = time.monotonic() + (config.ttl_s if config.ttl_s is not None else float("inf"))
        while time.monotonic() < until and not done.wait(_LOOK):
            _check(process, log)
    finally:
        signal.signal(signal.SIGTERM, before)
        note.unlink(missing_ok=True)
        _end(process)


def add(port: int, config: ServerConfig) -> list[str]:
    """Load the adapters into the server that runs on the port; returns all that it serves then.

    Raises ProviderError when none of ours runs there, when it serves another base or template, or when it refuses.
    """
    fix = "serve it by itself, on a port of its own"
    reason = _unfit(config) or ("" if all(one.adapter for one in config.models) else "only adapters can be added to a running server")
    if reason:
        raise UsageError(f"vLLM cannot serve {_names(config)} beside others: {reason}", fix=fix)
    running, new = _running(port), _known(config)
    for part, words in (("base", "base model"), ("template", "chat template"), ("dtype", "precision")):
        if running[part] != new[part]:
            raise ProviderError(f"the server on port {port} has another {words} than {_names(config)}", fix=fix, retry="no")
    if new["rank"] > running["rank"]:
        what = f"{_names(config)} has rank {new['rank']}, and the server on port {port} takes adapters up to {running['rank']}"
        raise ProviderError(what, fix="start it anew with all of them", retry="no")
    for one in config.models:
        _post(port, "load_lora_adapter", {"lora_name": one.name, "lora_path": str(one.adapter)})
    return served(port)


def remove(port: int, names: Iterable[str]) -> list[str]:
    """Unload adapters from the server that runs on the port; returns what it still serves. Raises as ``add`` does."""
    _running(port)
    for name in names:
        _post(port, "unload_lora_adapter", {"lora_name": name})
    return served(port)


def served(port: int) -> list[str]:
    """What can be called there."""
    with _open(urllib.request.Request(f"http://{HOST}:{port}/v1/models")) as answer:
        return [str(entry["id"]) for entry in json.load(answer)["data"]]


# -- what vLLM can do --------------------------------------------------------------------------------------------------


def _executable() -> str | None:
    """vLLM's command: beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if beside.is_file() else shutil.which("vllm")


def _unfit(config: ServerConfig) -> str:
    """Why vLLM cannot serve these together, or ""."""
    for one in config.models:
        if one.adapter is None:
            continue
        settings = _settings(one)
        kind = settings.get("peft_type")
        if kind != "LORA":
            return f"{one.name} is no LoRA adapter ({kind})"
        if settings.get("use_dora"):
            return f"{one.name} is a DoRA adapter, which vLLM does not take; merged it can (tuneport export --merge)"
        if settings.get("modules_to_save") or settings.get("lora_bias") or settings.get("bias", "none") != "none":
            return f"{one.name} holds whole modules or biases beside its LoRA matrices"
        if _rank(one) > RANKS[-1]:
            return f"{one.name} has rank {_rank(one)}, and vLLM takes {RANKS[-1]} at most"
    if len({_template(one) for one in config.models}) > 1:
        return "they have different chat templates, and vLLM has one for all"
    return ""


def _base(config: ServerConfig) -> str:
    """The base's folder or hub id. Raises ProviderError for an adapter that says it was trained on other weights."""
    folder = prepare(locate(config.base))
    for one in config.models:
        if one.adapter:
            check_base(Path(one.adapter), folder)
    return folder


def _settings(one: ServedModel) -> dict[str, Any]:
    path = Path(str(one.adapter)) / "adapter_config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProviderError(f"{path} cannot be read ({error})", fix="name a finished job or an adapter's folder", retry="no") from error
    return found


def _rank(one: ServedModel) -> int:
    """The largest rank in the adapter: single layers may have their own."""
    settings = _settings(one)
    return max([int(settings.get("r") or 0), *map(int, (settings.get("rank_pattern") or {}).values())])


def _room(config: ServerConfig) -> int:
    highest = max((_rank(one) for one in config.models if one.adapter), default=0)
    return next(rank for rank in RANKS if rank >= highest)


def _template(one: ServedModel) -> str | None:
    """A digest of the adapter's own chat template; None for the model's."""
    return hashlib.sha256(Path(one.chat_template).read_bytes()).hexdigest() if one.chat_template else None


# -- the running server ------------------------------------------------------------------------------------------------


def _note(port: int) -> Path:
    return cache_dir() / "servers" / f"{port}.json"


def _known(config: ServerConfig) -> dict[str, Any]:
    """What an adapter must share with the server that it is added to; of rank it must not have more."""
    room, template = _room(config), _template(config.models[0])
    return {"base": _base(config), "template": template, "dtype": config.dtype, "rank": room}


def _running(port: int) -> dict[str, Any]:
    note = _note(port)
    if not note.exists() or not _answers(port):
        what = f"no vLLM server of tuneport's runs on port {port}, and only into those adapters are loaded while they run"
        raise ProviderError(what, fix="name its --port, or serve all jobs together from the start", retry="no")
    found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return found


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise ProviderError(f"port {wanted} cannot be used ({error.strerror})", fix="choose another --port", retry="no") from error
        return int(probe.getsockname()[1])


def _open(request: urllib.request.Request, timeout: float = 10.0) -> Any:
    """Asks without any proxy: it is this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def _answers(port: int) -> bool:
    try:
        with _open(urllib.request.Request(f"http://{HOST}:{port}/health")) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _post(port: int, what: str, body: dict[str, str]) -> None:
    request = urllib.request.Request(
        f"http://{HOST}:{port}/v1/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        _open(request, _SWAP_S).close()
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode(errors="replace")
        with suppress(ValueError, KeyError, TypeError):
            said = json.loads(said)["error"]["message"]
        what = f"vLLM on port {port} refuses {body['lora_name']}: {said[:300]}"
        raise ProviderError(what, fix=f"see what it serves: http://{HOST}:{port}/v1/models", retry="no") from error
    except OSError as error:
        raise ProviderError(f"the server on port {port} cannot be reached ({error})", fix="see whether it still runs") from error


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    status = process.poll()
    if status is None:
        return
    last = " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
    fix = f"read {log}; --server light serves without vLLM"
    raise ProviderError(f"vLLM ended with status {status} ({redact(last)[:500]})", fix=fix, retry="no")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask vLLM and its engine processes to end, and make them when they do not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _names(config: ServerConfig) -> str:
    return ", ".join(one.name for one in config.models)
