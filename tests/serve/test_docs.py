"""The pages that are made of the code's own tables say what the code does."""

from __future__ import annotations

from pathlib import Path

from pedcxr_serve import tenants
from pedcxr_serve.gateway import fields

PAGE = Path(__file__).parents[2] / "docs" / "tenants.md"


def test_the_page_of_tenants_holds_both_tables() -> None:
    page = PAGE.read_text()
    assert tenants.reference() in page
    assert fields.reference() in page
