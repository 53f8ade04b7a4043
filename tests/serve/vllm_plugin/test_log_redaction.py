"""vLLM log lines with request content are redacted, and still occur in vLLM's source."""

from __future__ import annotations

import importlib.util
import io
import logging
import re
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


def chained_error() -> BaseException:
    try:
        try:
            try:
                raise KeyError("Jane Doe")
            except KeyError:
                raise ValueError("Jane Doe, 3 years")  # noqa: B904  (a context)
        except ValueError as error:
            error.add_note("Jane Doe")
            raise RuntimeError("prompt: Jane Doe") from error
    except RuntimeError as error:
        return error


@pytest.mark.usefixtures("redaction")
def test_exceptions_and_their_causes_are_logged_without_their_messages() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger, error = logging.getLogger("test.uvicorn"), chained_error()
    logger.addHandler(handler)
    try:
        logger.error("Exception in ASGI application\n", exc_info=error)
    finally:
        logger.removeHandler(handler)
    assert "Jane" not in out.getvalue()
    places = r"RuntimeError at test_log_redaction\.py:\d+; caused by ValueError at .*; caused by KeyError at .*:\d+"
    assert re.search(places, out.getvalue()), out.getvalue()


@pytest.mark.parametrize("line", sorted(log_redaction.KEPT_LINES))
@pytest.mark.usefixtures("redaction")
def test_reason_for_the_end_of_the_engine_is_logged(line: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("vllm.any.module").error(line, exc_info=RuntimeError("CUDA out of memory"))
    assert "CUDA out of memory" in caplog.text


def test_causes_may_form_a_circle() -> None:
    error = ValueError()
    error.__context__ = KeyError()
    error.__context__.__context__ = error
    assert log_redaction.describe(error) == "ValueError; caused by KeyError"


def test_redacted_lines_occur_in_vllm_source() -> None:
    """Read the source files without importing vLLM."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    folder = Path(spec.origin).parent
    parts = ("renderers", "entrypoints", "logging_utils", "v1/engine", "v1/executor")
    source = "".join(path.read_text() for part in parts for path in sorted((folder / part).rglob("*.py")))
    lines = log_redaction.REDACTED_LINES | log_redaction.KEPT_LINES
    assert [line for line in lines if f'"{line}"' not in source] == []
