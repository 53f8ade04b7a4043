"""What a client sends for the audit log."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pedcxr_serve.gateway.request.client_metadata import ClientMetadata


@pytest.mark.parametrize(
    ("profile", "valid"),
    [
        ("card/1:0123456789ab", True),
        ("training/999:ffffffffffff", True),
        ("", False),
        ("card/1:0123456789AB", False),
        ("card/1:0123456789ab\n", False),
        ("card/1234:0123456789ab", False),
        ("card/١:0123456789ab", False),
        ("Jane Doe", False),
        ("a" * 17 + "/1:0123456789ab", False),
    ],
)
def test_prompt_profile(profile: str, valid: bool) -> None:
    assert ClientMetadata.of({"x-pedcxr-prompt": profile}).prompt_profile == (profile if valid else None)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("age", ("age",)),
        ("age, body-part", ("age", "body-part")),
        (",".join(["age"] * 12), ("age",) * 12),
        (",".join(["age"] * 13), None),
        ("", None),
        ("age,", None),
        ("age,Jane", None),
        ("a" * 21, None),
    ],
)
def test_overrides(header: str, names: tuple[str, ...] | None) -> None:
    assert ClientMetadata.of({"x-pedcxr-allow": header}).overrides == names
    assert ClientMetadata.of({}) == ClientMetadata(None, None)


@given(st.text(), st.text())
def test_other_forms_are_dropped(profile: str, header: str) -> None:
    metadata = ClientMetadata.of({"x-pedcxr-prompt": profile, "x-pedcxr-allow": header})
    assert re.fullmatch(r"None|[a-z]+/[0-9]+:[0-9a-f]{12}", str(metadata.prompt_profile))
    assert re.fullmatch(r"[a-z-]*", "".join(metadata.overrides or ()))
