"""vLLM log lines with request content are redacted, and still occur in vLLM's source."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pedcxr_serve.vllm_plugin import log_redaction


@pytest.fixture
def redaction() -> Iterator[None]:
    before = {name: list(logging.getLogger(name).filters) for name, _ in log_redaction.REDACTED_LINES}
    log_redaction.install()
    log_redaction.install()
    yield
    for name, filters in before.items():
        logging.getLogger(name).filters = filters


@pytest.mark.parametrize(("name", "line"), log_redaction.REDACTED_LINES)
@pytest.mark.usefixtures("redaction")
def test_values_are_redacted(name: str, line: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    logger.propagate = True
    with caplog.at_level(logging.DEBUG, logger=name):
        logger.error(line, *["Jane Doe"] * line.count("%s"))
        logger.error("another line: %s", "unchanged")
    text, other = [record.getMessage() for record in caplog.records]
    assert "Jane" not in text and "(withheld)" in text
    assert text.startswith(line.partition("%s")[0])
    assert other == "another line: unchanged"


@pytest.mark.parametrize(("name", "line"), log_redaction.REDACTED_LINES)
def test_redacted_lines_occur_in_vllm_source(name: str, line: str) -> None:
    """Read the source files without importing vLLM."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = Path(spec.origin).parent.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text()
    assert f'"{line}"' in source
