"""Tables in the docs that are generated from the code are up to date."""

from __future__ import annotations

from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.request import validation
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "tenants.md"


def test_tenants_page_contains_both_tables() -> None:
    page = PAGE.read_text()
    assert tenants.SCHEMA.markdown("key of `[tenant.NAME]`") in page
    assert validation.SCHEMA.markdown("field") in page
