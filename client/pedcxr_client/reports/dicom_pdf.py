"""DICOM Encapsulated PDF (PS3.3 A.45.1) of a report. Common viewers show it; most of them show no Basic Text SR."""

from __future__ import annotations

from pedcxr_client.reports import dicom_header
from pedcxr_client.reports.dicom_header import Identity
from pedcxr_client.reports.pdf import to_pdf
from pedcxr_client.reports.report import Report

ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"  # SOP class UID of the document


def to_dicom_pdf(report: Report, *, identity: Identity | None = None, new: bool = False) -> bytes:
    """Return the report as a DICOM file that contains `to_pdf`. The same report gives the same bytes.

    Args:
        identity: patient, study and film of the report. None leaves these attributes empty.
        new: write another series instead of the same one again.

    Raises:
        ConfigurationError: pydicom is not installed.
        InputError: a value of the identity cannot be encoded.
    """
    dicom_header.require_pydicom()
    document = dicom_header.document(report, identity, ENCAPSULATED_PDF, "DOC", new=new)
    document.ConversionType = "WSD"  # workstation
    document.BurnedInAnnotation = "YES"  # a reader must assume that text identifies the patient
    document.AcquisitionDateTime = ""
    document.DocumentTitle = dicom_header.notice(report)
    document.ConceptNameCodeSequence = [dicom_header.code_item(dicom_header.DOCUMENT_TITLE)]
    document.VerificationFlag = "UNVERIFIED"
    if identity is not None:
        document.SourceInstanceSequence = [dicom_header.film_reference(identity)]
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    data = to_pdf(report)
    document.EncapsulatedDocumentLength = len(data)
    document.EncapsulatedDocument = data + b"\0" * (len(data) % 2)
    return dicom_header.to_bytes(document, has_identity=identity is not None)
