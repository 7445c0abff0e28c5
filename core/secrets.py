"""Keeps secrets out of everything that is stored or printed (promise 5).

Keys live in the environment; specs and plans name them as ``${env:NAME}``. Free text that comes from elsewhere
(a vendor's message, an exception) may still quote one, so it passes through ``redact`` before it is kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

MASK = "[secret]"

_ENV_NAME = re.compile(r"(?:_KEY|_TOKEN|_SECRET|_PASSWORD)$")
_SHORTEST_ENV_VALUE = 8
"""Shorter values ("1", "none") are not keys, and masking them would garble ordinary text."""

_SHAPES = re.compile(
    r"""
    (?<![A-Za-z0-9])(?:
        sk-[A-Za-z0-9_*-]{16,}                      # OpenAI and most who speak its protocol, masked or not
      | hf_[A-Za-z0-9]{16,}                         # Hugging Face
      | (?:AKIA|ASIA)[0-9A-Z]{16}                   # AWS access key id
      | fw_[A-Za-z0-9]{16,}                         # Fireworks
      | tgp_[A-Za-z0-9_-]{16,}                      # Together
      | wandb_v1_[A-Za-z0-9_-]{16,}                 # Weights & Biases
      | (?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,} # GitHub
      | AIza[A-Za-z0-9_-]{30,}                      # Google
      | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}  # JSON Web Token
    )
    | (?<=Bearer\ )[A-Za-z0-9._~+/=-]{8,}             # the token68 of RFC 6750
    | (?<=://)[^\s/:@]+:[^\s/@]+(?=@)               # user:password in a URL
    | (?<=Signature=)[^\s&"']+ | (?<=X-Amz-Credential=)[^\s&"']+ | (?<=X-Amz-Security-Token=)[^\s&"']+  # signed URLs
    """,
    re.VERBOSE,
)
_NAMED = re.compile(
    r"""(?ix) ((?:x-)?api[-_]?key | authorization | secret[-_]?(?:access[-_]?)?key | password)
        (["']?\s*[:=]\s*["']?) (?!\$\{|Bearer\b|\[secret\]) [^\s"',;&)\]}]{8,}"""
)

_SECRET_NAME = re.compile(
    r"(?ix) (?:^|[._-]) (?: (?:api|access|secret)[_-]?key | secret | password | token | credentials? ) $ | ^authorization$"
)


def redact(text: str) -> str:
    """The text with every known secret masked as ``[secret]``.

    Masks the key shapes of the common vendors, bearer tokens, passwords in URLs, signatures of signed URLs, what
    stands after ``api_key=`` and its like, and the values (8 characters or more) of all environment variables whose
    names end in _KEY, _TOKEN, _SECRET or _PASSWORD.
    """
    for value in _environment_secrets():
        text = text.replace(value, MASK)
    return _NAMED.sub(rf"\1\2{MASK}", _SHAPES.sub(MASK, text))


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of everything in the text that has the shape of a known secret; variables and field names are not looked at."""
    return (match.span() for match in _SHAPES.finditer(text))


def looks_secret(text: str) -> bool:
    """Whether the text is, or holds, a secret, or is what people call the field for one (``api_key``, ``hf_token``)."""
    return bool(_SECRET_NAME.search(text)) or redact(text) != text


def find_secrets(document: object, path: str = "") -> Iterator[str]:
    """The dotted paths of all strings in a JSON-like document that hold a secret."""
    if isinstance(document, str):
        if redact(document) != document:
            yield path
    elif isinstance(document, dict):
        for key, value in document.items():
            yield from find_secrets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(document, (list, tuple)):
        for index, value in enumerate(document):
            yield from find_secrets(value, f"{path}[{index}]")


def _environment_secrets() -> list[str]:
    values = {v for name, v in os.environ.items() if _ENV_NAME.search(name) and len(v) >= _SHORTEST_ENV_VALUE}
    return sorted(values, key=len, reverse=True)  # the longest first, so that one key inside another leaves no rest
