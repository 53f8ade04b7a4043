"""The pages that are made of the code's own tables say what the code does."""

from __future__ import annotations

from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.request import fields
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "tenants.md"


def test_the_page_of_tenants_holds_both_tables() -> None:
    page = PAGE.read_text()
    assert tenants.reference() in page
    assert fields.reference() in page
