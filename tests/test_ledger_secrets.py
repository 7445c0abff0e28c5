"""Redaction: no key survives, ordinary text does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.errors import LedgerError, ProviderError
from tuneport.core.secrets import MASK, find_secrets, looks_secret, redact

TOKEN = st.text(alphabet="ABCDEFGHIJKLMNOPabcdefghijklmnop0123456789", min_size=24, max_size=60)
PREFIX = st.sampled_from(
    ["sk-", "sk-proj-", "hf_", "fw_", "tgp_v1_", "wandb_v1_", "Bearer ", "Authorization: Bearer ", "api_key=", "password: "]
)
BEFORE = st.sampled_from(["", "key ", '{"k": "', "(", "got: "])
AFTER = st.sampled_from(["", '"', ")", " end", ", x"])


@given(before=BEFORE, prefix=PREFIX, token=TOKEN, after=AFTER)
def test_every_key_shape_is_masked_anywhere(before: str, prefix: str, token: str, after: str) -> None:
    clean = redact(before + prefix + token + after)
    assert token not in clean
    assert MASK in clean
    assert clean.endswith(after)
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "AKIAABCDEFGHIJKLMNOP",
        "postgresql+psycopg://me:hunter2@host/db",
        "https://bucket/file?X-Amz-Credential=AKIA/x&X-Amz-Signature=0123abcd",
        "Incorrect API key provided: sk-proj-********************wxyz",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlLWJ5dGVz",
        '{"aws_secret_access_key": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"}',
    ],
)
def test_known_forms_are_masked(text: str) -> None:
    clean = redact(text)
    assert MASK in clean
    assert not any(part in clean for part in ("AKIA", "hunter2", "0123abcd", "wxyz", "eyJ", "wJal"))


@pytest.mark.parametrize(
    "text",
    [
        "wandb_key: ${env:WANDB_API_KEY}, api_key=${env:TOGETHER_API_KEY}",
        "max_output_tokens 4096; task-specific-learning-rate-multiplier 1.8",
        "set OPENAI_API_KEY and run again",
        "https://api.together.xyz/v1/fine-tunes/ft-4f1c2c3d-aaaa-bbbb-cccc-0123456789ab",
        "model ft:gpt-4.1-mini-2025-04-14:acme::AbCdEf12",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_values_of_key_variables_are_masked_but_short_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_VENDOR_KEY", "plain words here")
    monkeypatch.setenv("MY_VENDOR_TOKEN", "plain words here and more")
    monkeypatch.setenv("SORT_KEY", "name")
    monkeypatch.setenv("MY_HOME", "somewhere-else")
    assert redact("a plain words here and more b plain words here c") == f"a {MASK} b {MASK} c"
    assert redact("sort by name somewhere-else") == "sort by name somewhere-else"


def test_errors_mask_what_they_quote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_API_KEY", "very-secret-value")
    for error in (ProviderError("401 for very-secret-value"), LedgerError("x", fix="use very-secret-value")):
        assert "very-secret-value" not in f"{error} {error!r} {error.what} {error.fix}"


def test_secrets_are_found_by_path() -> None:
    document = {"a": [{"b": "ok"}, {"b": "hf_abcdefghijklmnopqrst"}], "c": {"d": "Bearer abcdefghijk", "e": 3, "f": None}}
    assert list(find_secrets(document)) == ["a[1].b", "c.d"]


@pytest.mark.parametrize(
    ("text", "secret"), [("api_key", True), ("hf_token", True), ("max_output_tokens", False), ("hf_" + "a" * 20, True), ("rank", False)]
)
def test_names_of_secret_fields_are_known(text: str, secret: bool) -> None:
    assert looks_secret(text) is secret
