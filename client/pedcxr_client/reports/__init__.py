"""Reports in the forms that others read: text, JSON, CSV, FHIR R4, DICOM SR. Each carries the notices and the origin.

No option of any of them leaves the disclaimer out, and none calls a report final or verified.
"""

from pedcxr_client.reports.csv_table import COLUMNS, to_csv
from pedcxr_client.reports.dicom_sr import Identity, identity_of, to_sr
from pedcxr_client.reports.fhir import to_fhir
from pedcxr_client.reports.json_lines import to_json, to_jsonl
from pedcxr_client.reports.plain_text import to_text

__all__ = [
    "COLUMNS",
    "Identity",
    "identity_of",
    "to_csv",
    "to_fhir",
    "to_json",
    "to_jsonl",
    "to_sr",
    "to_text",
]
