"""What is missing before a job can run at a provider, found out by reads only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tuneport.core.errors import CredentialsError, TuneportError
from tuneport.providers import registry


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. ``fix`` is set unless it is ok: the exact right, role or setting that is missing."""

    check: str  # e.g. "credentials", "s3://acme-tuning", "role: s3:GetObject"
    state: Literal["ok", "missing", "unknown"]
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.check}: {self.message}" + (f"; {self.fix}" if self.fix else "")


def diagnose(provider: str, options: Any, environment: Mapping[str, str], *, model: str | None = None) -> Iterator[Finding]:
    """Every check that can be made, in the order in which a job would need them. Changes nothing anywhere.

    ``options`` is what stands in the spec under ``options.<provider>``, ``model`` the base model's id there.
    Raises UsageError on an unknown provider and MissingExtraError when its SDK is not installed; what the vendor says is a finding.
    """
    place = registry.get(provider, options)
    registry.require(provider)
    entry = registry.entries()[provider]
    yield Finding("package", "ok", f"{entry.sdk} is installed")
    if provider == "bedrock":  # the only one with roles, buckets and regions
        from tuneport.core.options import BedrockOptions  # noqa: PLC0415 - imports boto3's world
        from tuneport.providers.bedrock.doctor import diagnose as diagnose_bedrock  # noqa: PLC0415

        yield from diagnose_bedrock(options or BedrockOptions(), environment, model=model)
        return
    lacking = [name for name in entry.environment if not any(environment.get(one) for one in name.split(" or "))]
    for name in entry.environment:
        if name in lacking:
            yield Finding("credentials", "missing", f"{name} is not set", f"export {name}")
        else:
            yield Finding("credentials", "ok", f"{name} is set")
    if lacking:
        return
    try:
        newest = next(iter(place.list_jobs(limit=1)), None)
    except TuneportError as error:
        yield Finding("account", "missing" if isinstance(error, CredentialsError) else "unknown", error.what, error.fix)
    else:
        yield Finding("account", "ok", f"its newest job is {newest.ref}" if newest else "it can be read, and holds no job yet")
