"""vLLM log lines with request content are redacted, and still occur in vLLM's source."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pedcxr_serve.vllm_plugin import log_redaction

LINES = sorted(log_redaction.REDACTED_LINES)


@pytest.fixture
def redaction() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    log_redaction.install()
    installed = logging.getLogRecordFactory()
    log_redaction.install()
    assert logging.getLogRecordFactory() is installed is not before
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.usefixtures("redaction")
def test_values_are_redacted(line: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("vllm.any.module")
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        logger.error(line, *["Jane Doe"] * line.count("%s"))
        logger.error("another line: %s", "unchanged")
        logger.error(ValueError("no format string"))
    text, *others = [record.getMessage() for record in caplog.records]
    assert "Jane" not in text and "(withheld)" in text
    assert text.startswith(line.partition("%s")[0])
    assert others == ["another line: unchanged", "no format string"]


def test_redacted_lines_occur_in_vllm_source() -> None:
    """Read the source files without importing vLLM."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    folder = Path(spec.origin).parent
    parts = ("renderers", "entrypoints", "logging_utils")
    source = "".join(path.read_text() for part in parts for path in sorted((folder / part).rglob("*.py")))
    assert [line for line in LINES if f'"{line}"' not in source] == []
