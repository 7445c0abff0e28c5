#!/usr/bin/env python
"""A stand-in for the ``vllm`` command: takes the arguments that ``vllm serve`` takes and speaks its endpoints, without any model.

The arguments are those of vLLM's own parser that matter here (0.33.0: ``entrypoints/common/cli_args.py``, ``engine/arg_utils.py``,
``config/lora.py``; read 2026-11-22): an unknown flag, a rank that is no choice or a template that is not there ends it with status 2.
Answers say which adapter was asked, from where, and with which template.
"""

from __future__ import annotations

import argparse
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    serve = parser.add_subparsers(required=True).add_parser("serve", allow_abbrev=False)
    serve.add_argument("model_tag", nargs="?")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--allowed-origins", type=json.loads, default=["*"])
    serve.add_argument("--lora-modules", nargs="+", default=[])
    serve.add_argument("--chat-template")
    serve.add_argument("--served-model-name", nargs="+")
    serve.add_argument("--dtype", choices=["auto", "half", "float16", "bfloat16", "float", "float32"], default="auto")
    serve.add_argument("--trust-remote-code", action=argparse.BooleanOptionalAction, default=False)
    serve.add_argument("--enable-lora", action=argparse.BooleanOptionalAction)
    serve.add_argument("--max-loras", type=int, default=1)
    serve.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512], default=16)
    given = parser.parse_args()
    modules = []
    for item in given.lora_modules:
        module = dict(zip(("name", "path"), item.split("="), strict=True)) if "=" in item and "," not in item else json.loads(item)
        if not module.keys() <= {"name", "path", "base_model_name"}:
            parser.error(f"Invalid fields for --lora-modules: {item}")
        modules.append(module)
    given.lora_modules = modules
    if given.chat_template and not Path(given.chat_template).exists():
        parser.error(f"the supplied chat template ({given.chat_template}) was opened and does not exist")
    if not (Path(given.model_tag) / "config.json").exists():
        parser.error(f"no model in {given.model_tag}")
    return given


class Handler(BaseHTTPRequestHandler):
    arguments: argparse.Namespace
    adapters: dict[str, str]

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(200, b"")
        elif self.path == "/v1/models":
            base = {"root": self.arguments.model_tag, "parent": None}
            listed = dict.fromkeys(self.arguments.served_model_name, base)
            listed |= {name: {"root": path, "parent": self.arguments.served_model_name[0]} for name, path in self.adapters.items()}
            entries = [{"id": name, "object": "model", "created": 1, "owned_by": "vllm", **more} for name, more in listed.items()]
            self.reply(200, {"object": "list", "data": entries})
        else:
            self.fail(404, "Not Found")

    def do_POST(self) -> None:
        if self.headers.get("Content-Type") != "application/json":
            return self.fail(400, "Unsupported Media Type: Only 'application/json' is allowed")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/chat/completions":
            return self.chat(body)
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").strip().lower() not in ("1", "true"):
            return self.fail(404, "Not Found")
        name = body.get("lora_name")
        if self.path == "/v1/load_lora_adapter":
            if name in self.adapters:
                return self.fail(400, f"The lora adapter '{name}' has already been loaded.")
            fault = self.load(name, body["lora_path"])
            return self.fail(500, fault) if fault else self.reply(200, f"Success: LoRA adapter '{name}' added successfully.".encode())
        if self.path == "/v1/unload_lora_adapter":
            if self.adapters.pop(name, None) is None:
                return self.fail(404, f"The lora adapter '{name}' cannot be found.")
            return self.reply(200, f"Success: LoRA adapter '{name}' removed successfully.".encode())
        return self.fail(404, "Not Found")

    @classmethod
    def load(cls, name: str, path: str) -> str:
        """Keep the adapter as vLLM's PEFT helper would; why not, or ""."""
        if not cls.arguments.enable_lora:
            return "Call to add_lora method failed: LoRA is not enabled"
        settings = json.loads((Path(path) / "adapter_config.json").read_text())
        if settings.get("use_dora"):
            return "vLLM does not yet support DoRA."
        if settings["r"] > cls.arguments.max_lora_rank:
            return f"LoRA rank {settings['r']} is greater than max_lora_rank {cls.arguments.max_lora_rank}."
        cls.adapters[name] = path
        return ""

    def chat(self, body: dict[str, Any]) -> None:
        name = body["model"]
        if name not in {*self.arguments.served_model_name, *self.adapters}:
            return self.fail(404, f"The model `{name}` does not exist.")
        text = f"{name} at {self.adapters.get(name, 'the base')} in {self.arguments.dtype}, template {self.arguments.chat_template}"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return self.reply(
            200, {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": name, "choices": [choice], "usage": usage}
        )

    def fail(self, status: int, message: str) -> None:
        self.reply(status, {"error": {"message": message, "type": "error", "param": None, "code": status}})

    def reply(self, status: int, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    Handler.arguments, Handler.adapters = parsed(), {}
    for module in Handler.arguments.lora_modules:
        fault = Handler.load(module["name"], module["path"])
        if fault:
            raise SystemExit(f"ValueError: {fault}")
    print(f"arguments {vars(Handler.arguments)}", flush=True)
    ThreadingHTTPServer((Handler.arguments.host, Handler.arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
