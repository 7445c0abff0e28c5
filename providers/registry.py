"""Which providers exist. A table of strings, so that asking costs no import; plugins join through an entry point.

A third party adds a vendor with the entry-point group ``tuneport.providers``: name = "package.module:ClassName". The class is
made without arguments, or with ``options=`` where its constructor has that parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import MissingExtraError, UsageError

if TYPE_CHECKING:  # listing providers must not load the spec's models
    from tuneport.core.provider import Provider


@dataclass(frozen=True, slots=True)
class Entry:
    """One provider: where its class is, and what submitting to it needs. Planning needs neither extra nor key."""

    name: str
    title: str
    target: str  # "module:class"
    extra: str  # pip install 'tuneport[extra]'
    sdk: str  # the module whose presence means that the extra is installed
    environment: tuple[str, ...]  # variables that hold its credentials; the AWS chain may stand in for them
    note: str = ""


_BUILT_IN = (
    Entry(
        "openai", "OpenAI", "tuneport.providers.openai.client:OpenAIProvider", "openai", "openai", ("OPENAI_API_KEY",),
        "closes: no new jobs after 2027-01-06, tuned models go dark on 2027-01-14",
    ),
    Entry(
        "bedrock", "Amazon Bedrock", "tuneport.providers.bedrock.client:BedrockProvider", "bedrock", "boto3",
        ("AWS_PROFILE or AWS_ACCESS_KEY_ID",),
    ),
    Entry("together", "Together AI", "tuneport.providers.together.client:TogetherProvider", "together", "together", ("TOGETHER_API_KEY",)),
    Entry(
        "fireworks", "Fireworks AI", "tuneport.providers.fireworks.client:FireworksProvider", "fireworks", "fireworks",
        ("FIREWORKS_API_KEY", "FIREWORKS_ACCOUNT_ID"),
    ),
    Entry("local", "this machine", "tuneport.providers.local.client:LocalProvider", "local", "torch", (), "nothing leaves the building"),
)


def entries() -> dict[str, Entry]:
    """Every provider by name: the built-in ones first, then installed plugins by name."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - 25 ms that only who looks for a provider pays

    found = {entry.name: entry for entry in _BUILT_IN}
    for point in sorted(entry_points(group="tuneport.providers"), key=lambda p: p.name):
        found.setdefault(point.name, Entry(point.name, point.name, point.value, "", point.module.partition(".")[0], (), "plugin"))
    return found


def names() -> tuple[str, ...]:
    """The names of all providers."""
    return tuple(entries())


def require(name: str) -> None:
    """Raises MissingExtraError when what submitting to a provider needs is not installed."""
    entry = entries()[name]
    if entry.extra and find_spec(entry.sdk) is None:
        raise MissingExtraError(f"{entry.title} needs the package {entry.sdk}", entry.extra)


def get(name: str, options: Any = None) -> Provider:
    """The provider of that name, reached by these options: what stands in a spec under ``options.<name>``.

    A provider's class takes them as its argument ``options``; one without it has no address, region or account to choose.
    Raises UsageError with the known names when there is no such provider.
    """
    entry = entries().get(name)
    if entry is None:
        import difflib  # noqa: PLC0415

        close = difflib.get_close_matches(name, names(), n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names())}"
        raise UsageError(f"there is no provider {name!r}", fix=fix)
    module, _, attribute = entry.target.partition(":")
    factory: Any = getattr(import_module(module), attribute)
    provider: Provider = factory(options=options) if "options" in signature(factory).parameters else factory()
    return provider
