"""Output formats of a report: plain text, JSON, CSV, FHIR R4 and DICOM SR.

Every format contains the notices and the provenance of the report. No option removes the disclaimer, and no format
marks a report as final or verified.
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
