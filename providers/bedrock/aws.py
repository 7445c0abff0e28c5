"""boto3 as tuneport uses it: AWS's own credential chain, explicit timeouts, no retries of its own, nothing secret in its logs."""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tuneport.core.errors import MissingExtraError, UsageError
from tuneport.core.secrets import redact
from tuneport.providers.bedrock.errors import REGION_FIX, translated

TIMEOUT_S = 60.0
"""Longest wait for one answer, in seconds: botocore's own default."""
CONNECT_S = 10.0
CONNECTIONS = 16

_SDK_LOGGERS = ("boto3", "botocore", "s3transfer")


class Aws:
    """Clients of AWS's services by region, made when first needed and kept; safe to share between threads.

    ``environment`` stands in for ``os.environ`` where tuneport reads it; botocore itself always reads the process's.
    Endpoints follow AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_<SERVICE>, as botocore does.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, environment: Mapping[str, str] | None = None) -> None:
        self._timeout_s = timeout_s
        self._environment = os.environ if environment is None else environment
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[tuple[str, str, int], Any] = {}

    def region(self, named: str | None = None) -> str:
        """The region named in the spec, or that of AWS_REGION, AWS_DEFAULT_REGION or the AWS profile.

        Raises UsageError when there is none.
        """
        found = named or self._environment.get("AWS_REGION") or self._environment.get("AWS_DEFAULT_REGION")
        if not found:
            with boto(), self._lock:
                found = self._boto().region_name
        if not found:
            raise UsageError("no AWS region is set", fix=REGION_FIX)
        return str(found)

    def client(self, service: str, region: str, *, connections: int = CONNECTIONS) -> Any:
        """The client of a service, e.g. ("bedrock", "us-east-1"), which keeps at least 16 connections open.

        Raises MissingExtraError, CredentialsError or UsageError.
        """
        kept = max(connections, CONNECTIONS)
        with self._lock:
            known = self._clients.get((service, region, kept))
            if known is None:
                with boto():
                    known = self._clients[service, region, kept] = self._made(service, region, kept)
        return known

    def _made(self, service: str, region: str, connections: int) -> Any:
        from botocore.config import Config  # noqa: PLC0415 -- an extra

        config = Config(
            connect_timeout=min(CONNECT_S, self._timeout_s),
            read_timeout=self._timeout_s,
            # Never retried by the SDK: core.retry is the one policy, and create must be sent once.
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=connections,
        )
        client = self._boto().client(service, region_name=region, config=config)
        _keep_secrets_out_of_logs()  # after the client, which imports more of the SDK
        return client

    def _boto(self) -> Any:
        if self._session is None:
            import boto3  # noqa: PLC0415 -- an extra
            import botocore.session  # noqa: PLC0415

            core = botocore.session.Session(profile=self._environment.get("AWS_PROFILE") or None)
            # The service models are read from disk once in a process, not once per provider: that is most of a client's cost.
            core.register_component("data_loader", _models_of(core))
            self._session = boto3.Session(botocore_session=core)
        return self._session


@contextmanager
def boto() -> Iterator[None]:
    """``translated``, where boto3 may be missing altogether. Raises MissingExtraError then."""
    try:
        import boto3  # noqa: F401, PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError("boto3, the SDK of AWS, is not installed", "bedrock") from error
    with translated():
        yield


def region_of(arn: str) -> str | None:
    """The region in an ARN; None when it is not an ARN, or names none."""
    parts = arn.split(":", 5)
    return parts[3] or None if len(parts) == 6 and parts[0] == "arn" else None


_MODELS: dict[str, Any] = {}


def _models_of(core: Any) -> Any:
    """The loader of service models that all sessions of this process with the same AWS_DATA_PATH share."""
    return _MODELS.setdefault(str(core.get_config_variable("data_path")), core.get_component("data_loader"))


class _Redacting(logging.Filter):
    """Masks secrets in what the SDK logs: at DEBUG it writes down answers in full, and at any level errors that quote them."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info and not isinstance(record.exc_info, bool):
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
            record.exc_info = None
        return True


_REDACTING = _Redacting()


def _keep_secrets_out_of_logs() -> None:
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _SDK_LOGGERS:
            logging.getLogger(name).addFilter(_REDACTING)  # added once, however often it is asked for
