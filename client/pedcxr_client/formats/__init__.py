"""Reports in the forms that others read: text, JSON, CSV, FHIR R4, DICOM SR. Each carries the notices and the origin.

No option of any of them leaves the disclaimer out, and none calls a report final or verified.
"""

from .dicom_sr import Identity, identity_of, to_sr
from .fhir import to_fhir
from .records import to_json, to_jsonl
from .table import COLUMNS, to_csv
from .text import to_text

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
