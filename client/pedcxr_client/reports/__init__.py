"""Output formats of a report: plain text, JSON, CSV, FHIR R4, PDF, and DICOM SR and Encapsulated PDF.

Every format contains the notices and the provenance of the report. No option removes the disclaimer, and no format
marks a report as final or verified.
"""

from pedcxr_client.reports.csv_table import COLUMNS, to_csv
from pedcxr_client.reports.dicom_header import Identity, identity_of
from pedcxr_client.reports.dicom_sr import to_sr
from pedcxr_client.reports.fhir import Context, context_of, to_fhir
from pedcxr_client.reports.json_lines import Line, read_jsonl, to_json, to_jsonl
from pedcxr_client.reports.pdf import to_dicom_pdf, to_pdf
from pedcxr_client.reports.plain_text import to_text

__all__ = [
    "COLUMNS",
    "Context",
    "Identity",
    "Line",
    "context_of",
    "identity_of",
    "read_jsonl",
    "to_csv",
    "to_dicom_pdf",
    "to_fhir",
    "to_json",
    "to_jsonl",
    "to_pdf",
    "to_sr",
    "to_text",
]
