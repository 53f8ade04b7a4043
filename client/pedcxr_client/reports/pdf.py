"""A report as PDF (ISO 32000-1): A4 pages of `to_text` in Courier, one of the 14 fonts that every viewer has.

No font is embedded, so the file is small. Characters outside Windows-1252 are addressed by their glyph names, up to 30
per file. A character that the font lacks is written as ``[U+4E2D]``, so that nothing is lost without a trace.

A DICOM Encapsulated PDF (PS3.3 A.45.1) contains it. Common viewers show it; most of them show no Basic Text SR.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from pedcxr_client.reports import dicom_header
from pedcxr_client.reports.dicom_header import Identity
from pedcxr_client.reports.plain_text import to_text
from pedcxr_client.reports.report import Report

ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"  # SOP class UID of the document
_WIDTH, _HEIGHT, _MARGIN = 595, 842, 50  # A4 in points
_SIZE, _LEADING = 9, 12
_COLUMNS = int((_WIDTH - 2 * _MARGIN) / (0.6 * _SIZE))  # each glyph of Courier is 0.6 wide
_LINES = (_HEIGHT - 2 * _MARGIN) // _LEADING - 2  # a blank line and the page number follow
_TAB = 8

# Glyph names of the accents in Adobe's standard Latin character set, by their Unicode names.
_ACCENTS = {
    "ACUTE": "acute", "BREVE": "breve", "CARON": "caron", "CEDILLA": "cedilla", "COMMA BELOW": "commaaccent",
    "DOT ABOVE": "dotaccent", "DOUBLE ACUTE": "hungarumlaut", "MACRON": "macron", "OGONEK": "ogonek",
    "RING ABOVE": "ring", "STROKE": "slash",
}  # fmt: skip
_GLYPHS = {
    "\u2264": "lessequal",
    "\u2265": "greaterequal",
    "\u2260": "notequal",
    "\u2212": "minus",
    "\u0131": "dotlessi",
}
# Look-alikes that Courier lacks, and spaces.
_REPLACEMENTS = {ord(letter): text for letter, text in zip(
    "\u2010\u2011\u2032\u2033\u2190\u2192\u202f\u2009\u2007\u2028\u2029\x85\v\f",
    ["-", "-", "'", '"', "<-", "->", " ", " ", " ", "\n", "\n", "\n", "\n", "\n"], strict=True,
)}  # fmt: skip
_LATIN = re.compile(r"LATIN (SMALL|CAPITAL) LETTER ([A-Z]) WITH (.+)")
_FREE_CODES = (*range(1, 32),)  # Windows-1252 has no glyph there


def to_pdf(report: Report) -> bytes:
    """Return the report as a PDF file. The same report gives the same bytes."""
    lines = [part for line in _readable(to_text(report)).split("\n") for part in _wrap(line.expandtabs(_TAB))]
    pages = [lines[start : start + _LINES] for start in range(0, len(lines), _LINES)]
    codes, footer = _codes("".join(lines)), report.notices[0].partition(" Must")[0]
    streams = [_page(page, f"{footer}  {number}/{len(pages)}", codes)
               for number, page in enumerate(pages, 1)]  # fmt: skip
    return _file(streams, codes, report)


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


def _readable(text: str) -> str:
    """Return the text with line breaks as LF, and with each character that the font lacks as ``[U+XXXX]``."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").translate(_REPLACEMENTS)
    extra: dict[str, str] = {}
    for letter in text:
        if letter in extra or letter in "\n\t":
            continue
        is_known = _cp1252(letter) is not None or (len(_codes("".join(extra))) < len(_FREE_CODES) and _glyph(letter))
        if not is_known:
            extra[letter] = f"[U+{ord(letter):04X}]"
        elif _cp1252(letter) is None:
            extra[letter] = letter
    return text.translate({ord(letter): text for letter, text in extra.items()})


def _wrap(line: str) -> Iterable[str]:
    """Split a line at spaces, and a longer word at the edge."""
    while len(line) > _COLUMNS:
        at = line.rfind(" ", 1, _COLUMNS + 1)
        at = at if line[: max(at, 0)].strip() else _COLUMNS
        yield line[:at]
        line = line[at:].removeprefix(" ")
    yield line


def _cp1252(letter: str) -> int | None:
    try:
        code = letter.encode("cp1252")[0]
    except UnicodeEncodeError:
        return None
    return code if code >= 32 and code != 127 else None


def _glyph(letter: str) -> str | None:
    """Return the glyph's name in Adobe's standard Latin character set, or None."""
    if letter in _GLYPHS:
        return _GLYPHS[letter]
    match = _LATIN.fullmatch(unicodedata.name(letter, ""))
    if match is None or match[3] not in _ACCENTS:
        return None
    accent = "commaaccent" if match[2] + match[3] in ("TCEDILLA", "SCOMMA BELOW") else _ACCENTS[match[3]]
    return (match[2].lower() if match[1] == "SMALL" else match[2]) + accent


def _codes(text: str) -> dict[str, int]:
    """Return the code of each character that Windows-1252 lacks."""
    letters = sorted({letter for letter in text if _cp1252(letter) is None and _glyph(letter)})
    return dict(zip(letters, _FREE_CODES, strict=False))


def _page(lines: Sequence[str], footer: str, codes: dict[str, int]) -> bytes:
    rows = [f"BT /F1 {_SIZE} Tf {_LEADING} TL {_MARGIN} {_HEIGHT - _MARGIN - _SIZE} Td".encode()]
    rows += [_literal(line, codes) + b" Tj T*" for line in lines]
    rows += [b"T* " * (_LINES + 1 - len(lines)) + _literal(footer, codes) + b" Tj ET"]
    return b"\n".join(rows)


def _literal(text: str, codes: dict[str, int]) -> bytes:
    values = (codes[letter] if letter in codes else _cp1252(letter) for letter in text)
    data = bytes(value if value is not None else ord("?") for value in values)
    return b"(" + re.sub(rb"[\\()\x00-\x1f\x80-\xff]", lambda match: b"\\%03o" % match[0][0], data) + b")"


def _file(streams: Sequence[bytes], codes: dict[str, int], report: Report) -> bytes:
    kids = " ".join(f"{5 + 2 * number} 0 R" for number in range(len(streams)))
    names = "".join(f" {code} /{_glyph(letter)}" for letter, code in codes.items())
    differences = f" /Differences [{names} ]" if names else ""
    created = report.created.strftime("D:%Y%m%d%H%M%SZ")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /Lang (" + report.language.encode() + b") >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(streams)} >>".encode(),
        f"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /ToUnicode 4 0 R /Encoding << /Type /Encoding "
        f"/BaseEncoding /WinAnsiEncoding{differences} >> >>".encode(),
        _stream(_to_unicode(codes)),
    ]
    for number, stream in enumerate(streams):
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {_WIDTH} {_HEIGHT}] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {6 + 2 * number} 0 R >>".encode(),
            _stream(stream),
        ]
    objects.append(f"<< /Title (AI-generated draft report) /Producer (pedcxr) /CreationDate ({created}) >>".encode())
    return _with_table(objects)


def _stream(data: bytes) -> bytes:
    return b"<< /Length %d >>\nstream\n" % len(data) + data + b"\nendstream"


def _to_unicode(codes: dict[str, int]) -> bytes:
    """Return the table from codes to characters (section 9.10.3), so that text can be copied and searched."""
    pairs = {code: letter for letter, code in codes.items()}
    for code in (*range(32, 127), *range(128, 256)):
        if letter := bytes([code]).decode("cp1252", errors="ignore"):
            pairs[code] = letter
    rows = [f"<{code:02X}> <{ord(letter):04X}>" for code, letter in sorted(pairs.items())]
    blocks = [rows[start : start + 100] for start in range(0, len(rows), 100)]  # the format allows 100 in a block
    table = "\n".join(f"{len(block)} beginbfchar\n" + "\n".join(block) + "\nendbfchar" for block in blocks)
    return (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /pedcxr def /CMapType 2 def\n"
        f"1 begincodespacerange <00> <FF> endcodespacerange\n{table}\n"
        "endcmap CMapName currentdict /CMap defineresource pop end end"
    ).encode()


def _with_table(objects: Sequence[bytes]) -> bytes:
    """Return the file with its header, cross-reference table and trailer (section 7.5). The last object is the info."""
    data, offsets = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n" % number + content + b"\nendobj\n"
    start, size = len(data), len(objects) + 1
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R /Info {size - 1} 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return data + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + trailer.encode()
