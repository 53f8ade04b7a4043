"""The generated tables on the documentation pages equal the tables in the code."""

from __future__ import annotations

from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.request import ignored_fields, validation
from tests.support.paths import ROOT


def test_operations_page_holds_the_table_of_tenant_settings() -> None:
    assert tenants.SCHEMA.markdown("key of `[tenant.NAME]`") in (ROOT / "docs/operations.md").read_text()


def test_http_api_page_holds_the_tables_of_request_fields() -> None:
    page = (ROOT / "docs/http-api.md").read_text()
    assert validation.SCHEMA.markdown("field") in page
    assert ignored_fields.markdown() in page
