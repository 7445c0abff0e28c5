"""The inference worker: ``python -m tuneport.local_backend.generate REQUESTS.jsonl``.

The first line of the file says what answers: {"model", "adapter", "chat_template", "device", "dtype", "trust_remote_code"}.
Each other line is a request: {"id", "messages", "max_tokens"}. Replies go to stdout as JSON lines while batches finish: {"id", "text",
"prompt_tokens", "completion_tokens", "seconds", "error"}. A fault of the whole run goes there as {"fault", "kind", "fix"}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneport.core.errors import DataError, TuneportError
from tuneport.local_backend.libraries import OPTIONAL, loading
from tuneport.local_backend.models import (
    check_base,
    choose_device,
    load_adapter,
    load_model,
    load_tokenizer,
    locate,
    prepare,
    require_training_stack,
)


def replies(settings: dict[str, Any], requests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Answer every request; one that cannot be answered comes back with its error, the others go on."""
    require_training_stack()
    device = choose_device(settings["device"])
    folder = prepare(locate(settings["model"]))
    template = settings.get("chat_template")
    trust = bool(settings.get("trust_remote_code"))
    tokenizer = load_tokenizer(folder, Path(template) if template else None, trust=trust)
    model = load_model(folder, dtype=settings["dtype"], device=device, training=False, trust=trust)
    if settings.get("adapter"):
        from tuneport.local_backend.lora import speed_up  # noqa: PLC0415 - imports torch

        check_base(Path(settings["adapter"]), folder)
        model = load_adapter(model, Path(settings["adapter"]))
        speed_up(model)
    from tuneport.local_backend.chat import prompt_ids, stop_tokens  # noqa: PLC0415
    from tuneport.local_backend.decode import Prompt, decode  # noqa: PLC0415

    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompts: list[Prompt] = []
    lengths: dict[str, int] = {}
    for request in requests:
        try:
            ids = prompt_ids(tokenizer, request["messages"])
        except DataError as error:
            yield {"id": request["id"], "error": str(error)}
            continue
        if limit and len(ids) + request["max_tokens"] > limit:
            fault = f"{len(ids)} prompt tokens and {request['max_tokens']} for the answer exceed the model's {limit}"
            yield {"id": request["id"], "error": fault}
            continue
        lengths[request["id"]] = len(ids)
        prompts.append(Prompt(request["id"], ids, request["max_tokens"]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    for answer in decode(model, prompts, stops=stop_tokens(tokenizer, model.generation_config), pad=pad):
        yield {
            "id": answer.id,
            "text": tokenizer.decode(answer.ids, skip_special_tokens=True),
            "prompt_tokens": lengths[answer.id],
            "completion_tokens": len(answer.ids),
            "seconds": answer.seconds,
        }


def main(arguments: list[str]) -> int:
    """Entry point. stdout carries replies only: whatever the libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with Path(arguments[0]).open(encoding="utf-8") as file:
        settings, *requests = [json.loads(line) for line in file]
    status = 0
    with out:
        try:
            require_training_stack()
            with loading(OPTIONAL):
                from tuneport.local_backend import chat, decode  # noqa: F401, PLC0415 - these import torch and transformers
            for reply in replies(settings, requests):
                out.write(json.dumps(reply, ensure_ascii=False) + "\n")
                out.flush()
        except TuneportError as error:
            out.write(json.dumps({"fault": error.what, "kind": type(error).__name__, "fix": error.fix}) + "\n")
            status = error.exit_code
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
