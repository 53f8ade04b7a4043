"""Lines of vLLM's log that would repeat a request, and vLLM's own source, in which they must stand."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pedcxr_serve.vllm_plugin import log_redaction


@pytest.fixture
def quietened() -> Iterator[None]:
    before = {name: list(logging.getLogger(name).filters) for name, _ in log_redaction.TALKATIVE}
    log_redaction.install()
    log_redaction.install()
    yield
    for name, filters in before.items():
        logging.getLogger(name).filters = filters


@pytest.mark.parametrize(("name", "line"), log_redaction.TALKATIVE)
@pytest.mark.usefixtures("quietened")
def test_values_are_withheld(name: str, line: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    logger.propagate = True
    with caplog.at_level(logging.DEBUG, logger=name):
        logger.error(line, *["Jane Doe"] * line.count("%s"))
        logger.error("another line: %s", "kept")
    told, other = [record.getMessage() for record in caplog.records]
    assert "Jane" not in told and "(withheld)" in told
    assert told.startswith(line.partition("%s")[0])
    assert other == "another line: kept"


@pytest.mark.parametrize(("name", "line"), log_redaction.TALKATIVE)
def test_vllm_still_writes_them_so(name: str, line: str) -> None:
    """Looked up in the source, without importing vLLM."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = Path(spec.origin).parent.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text()
    assert f'"{line}"' in source
