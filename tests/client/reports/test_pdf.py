"""The PDF form: text, page breaks and characters, read by poppler where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pedcxr_client import DISCLAIMER, Report
from pedcxr_client.reports import to_pdf
from pedcxr_client.reports.report import DEMO_NOTICE
from tests.client.reports.test_formats import DEMO, REPORT

needs_poppler = pytest.mark.skipif(
    shutil.which("pdftotext") is None, reason="pdftotext is not on the PATH; Debian's package poppler-utils has it"
)
LONG = replace(
    REPORT,
    text=f"FINDINGS: {'w' * 250}\n{'The lungs are clear. ' * 40}\n"
    + "\n".join(f"Line {number}." for number in range(200)),
)


def read(report: Report, tmp_path, *flags: str) -> str:
    path = tmp_path / "report.pdf"
    path.write_bytes(to_pdf(report))
    completed = subprocess.run(["pdftotext", *flags, path, "-"], capture_output=True, text=True, check=True)
    assert completed.stderr == ""
    return completed.stdout


@needs_poppler
def test_text_beyond_latin_1_can_be_read_and_searched(tmp_path):
    text = "FINDINGS: ≥ 5 mm, −3 °C, “clear” – Œdème. Ștefănescu Łódź, Ţ ț ő ğ ė. \\ (a) IMPRESSION: 中 → x\u2009y."
    shown = read(replace(REPORT, text=text), tmp_path, "-layout")
    expected = text.replace("中", "[U+4E2D]").replace("→", "->").replace("\u2009", " ")
    assert expected in " ".join(shown.split())
    assert "warning: view: lateral" in shown
    assert shown.startswith(DISCLAIMER[:40])


@needs_poppler
def test_long_lines_and_pages(tmp_path):
    shown = read(LONG, tmp_path, "-layout")
    pages = shown.split("\f")[:-1]
    assert len(pages) == 4
    assert [page.split()[-1] for page in pages] == [f"{number}/4" for number in range(1, 5)]
    assert all("Research use only" in page for page in pages)
    assert max(len(line) for line in shown.splitlines()) <= 91
    assert re.sub(r"\s", "", shown).count("w" * 91) == 2
    for number in range(200):
        assert f"Line {number}." in shown


@needs_poppler
def test_pages_have_ink_and_the_demo_is_marked(tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(to_pdf(DEMO))
    image = subprocess.run(["pdftoppm", "-r", "40", "-gray", path], capture_output=True, check=True).stdout
    assert image.startswith(b"P5") and len(set(image[-100_000:])) > 10
    assert read(DEMO, tmp_path).count(DEMO_NOTICE) >= 2, "at the top and at the bottom"


def test_structure():
    data = to_pdf(LONG)
    assert data.startswith(b"%PDF-1.4\n") and data.endswith(b"%%EOF\n")
    start = int(data.split()[-2])
    assert data[start : start + 4] == b"xref"
    offsets = [int(line[:10]) for line in data[start:].splitlines() if line.endswith(b" n ")]
    assert [data[offset:].split()[0] for offset in offsets] == [b"%d" % number for number in range(1, len(offsets) + 1)]
    for length, content in re.findall(rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", data, re.DOTALL):
        assert int(length) == len(content)
    assert to_pdf(LONG) == data


@given(some.text(max_size=300))
def test_any_text_becomes_printable_ascii(text):
    data = to_pdf(replace(REPORT, text=text))
    assert not set(data[20:]) - set(range(32, 127)) - {10}


def test_more_letters_than_one_font_has_are_written_as_numbers():
    letters = "".join(chr(code) for code in range(0x100, 0x180))
    data = to_pdf(replace(REPORT, text=letters + "中"))
    assert data.count(b" /A") >= 3 and b"[U+4E2D]" in data
