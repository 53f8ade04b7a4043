"""One request: its bytes over HTTP, the raw timestamps, and the check of its text after the last byte."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import aiohttp

from pedcxr_client.bench.bodies import Case, Draw
from pedcxr_client.errors import ReportError
from pedcxr_client.request.settings import Timeouts
from pedcxr_client.request.stream_parser import StreamParser, code_and_message, new_request_id, printable

OK = "ok"
REFUSED = ("rate_limited", "unavailable")
"""Outcomes of a request that the server refused on purpose."""
_READ_BYTES = 1 << 18
_NO_STREAM = "the response is not an event stream of chat completions; check the address"


@dataclass(slots=True)
class Sample:
    """One request. Times are seconds since the start of the run; None if the request did not reach that point.

    Attributes:
        case: id of the film.
        scheduled: when it was due; in a closed loop, when a place became free.
        sent: before the first byte of the request.
        first, last: arrival of the first and of the last non-empty text.
        done: end of the response, or of the attempt.
        outcome: ``"ok"``, the outcome of a `ReportError`, or ``rate_limited``, ``unavailable``, ``server``,
            ``connection``, ``timeout``, ``authentication``, ``bad_request``.
        status: HTTP status, or None without a response.
        message: the server's words for a failure, on one line; never a part of a report.
        engine: the server's own times for this request in milliseconds, if it states them.
        digest: of the text, to compare it with another of the same film.
        gaps: seconds between events with text.
    """

    tenant: str
    case: str
    scheduled: float
    sent: float = 0.0
    first: float | None = None
    last: float | None = None
    done: float = 0.0
    outcome: str = OK
    status: int | None = None
    message: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    request_bytes: int = 0
    retry_after: float | None = None
    engine: dict[str, float] = field(default_factory=dict)
    digest: str = ""
    gaps: list[float] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Whether a complete text arrived that passed the checks."""
        return self.outcome == OK

    @property
    def ttft(self) -> float | None:
        """Time to first token of the server: ``first - sent``."""
        return None if self.first is None else self.first - self.sent

    @property
    def ttft_user(self) -> float | None:
        """Time to first token of the user: ``first - scheduled``."""
        return None if self.first is None else self.first - self.scheduled

    @property
    def e2e(self) -> float | None:
        """End-to-end time of the server: ``last - sent``."""
        return None if self.last is None else self.last - self.sent

    @property
    def e2e_user(self) -> float | None:
        """End-to-end time of the user: ``last - scheduled``."""
        return None if self.last is None else self.last - self.scheduled

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first: ``(last - first) / (completion_tokens - 1)``."""
        if self.first is None or self.last is None or not self.completion_tokens or self.completion_tokens < 2:
            return None
        return (self.last - self.first) / (self.completion_tokens - 1)


class Target:
    """A server. ``clock`` starts at 0 when the run starts.

    Args:
        url: base URL, ending in ``/v1``.
        keys: API keys by tenant; None for a tenant without a key.
        allow: outcomes of the text check that count as ok.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        keys: Mapping[str, str | None],
        *,
        timeouts: Timeouts,
        allow: tuple[str, ...] = (),
    ) -> None:
        self._session, self._url = session, f"{url.rstrip('/')}/chat/completions"
        self._headers = {
            name: {"Authorization": f"Bearer {key}"} if key is not None else {} for name, key in keys.items()
        }
        self._timeout = aiohttp.ClientTimeout(
            total=timeouts.total, connect=timeouts.connect, sock_connect=timeouts.connect, sock_read=timeouts.gap
        )
        self._allow = allow
        self._start = time.perf_counter()

    def clock(self) -> float:
        """Return the seconds since the start of the run."""
        return time.perf_counter() - self._start

    async def send(self, draw: Draw, scheduled: float | None = None) -> Sample:
        """Send one request, once, and read its response to the end. No failure of the server raises."""
        now = self.clock()
        sample = Sample(draw.tenant.name, draw.case.id, now if scheduled is None else scheduled)
        sample.request_bytes = len(draw.body)
        parser = StreamParser(sent_id=new_request_id())
        headers = {**draw.case.headers, **self._headers[draw.tenant.name], "X-Request-Id": parser.sent_id}
        chunks: list[tuple[float, bytes]] = []
        sample.sent = self.clock()
        try:
            async with self._session.post(
                self._url, data=draw.body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                sample.status = response.status
                async for chunk in response.content.iter_any():
                    chunks.append((self.clock(), chunk))
                self._read(sample, parser, response.headers, chunks, draw.case)
        except TimeoutError:
            _fail(sample, "timeout", "no response within the time limit")
        except (aiohttp.ClientError, OSError) as error:
            _fail(sample, "connection" if not chunks else "aborted", printable(error) or type(error).__name__)
        except asyncio.CancelledError:
            _fail(sample, "cancelled", "the run was interrupted")
            raise
        finally:
            sample.done = self.clock()
        return sample

    def _read(
        self,
        sample: Sample,
        parser: StreamParser,
        headers: Mapping[str, str],
        chunks: list[tuple[float, bytes]],
        case: Case,
    ) -> None:
        if sample.status != 200:
            _refused(sample, headers, b"".join(chunk for _, chunk in chunks))
            return
        try:
            for arrival, data in events(chunks):
                event = json.loads(data)
                if parser.add(event, arrival) and sample.last is not None:
                    sample.gaps.append(arrival - sample.last)
                sample.first, sample.last = parser.first, parser.last
                sample.engine = _engine_times(event) or sample.engine
        except ValueError:
            _fail(sample, "server", _NO_STREAM)
            return
        except ReportError as error:
            _fail(sample, error.outcome, error.reason or str(error))
            return
        if not parser.started:
            _fail(sample, "server", _NO_STREAM)
            return
        if parser.usage is not None:
            sample.prompt_tokens, sample.completion_tokens = parser.usage.prompt_tokens, parser.usage.completion_tokens
        sample.digest = sha256(parser.text.encode()).hexdigest()[:16]
        try:
            parser.check(case.system)
        except ReportError as error:
            if error.outcome not in self._allow:
                _fail(sample, error.outcome, str(error))


def events(chunks: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Yield the data of each server-sent event with the arrival of its last byte, up to ``[DONE]``."""
    rest, data = b"", []
    for arrival, chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].strip())
            elif not line and data:
                text, data = b"\n".join(data), []
                if text == b"[DONE]":
                    return
                yield arrival, text


def _engine_times(event: object) -> dict[str, float]:
    """Return the times in milliseconds that vLLM adds to its last event (``--enable-per-request-metrics``)."""
    metrics = event.get("metrics") if isinstance(event, dict) else None
    if not isinstance(metrics, dict):
        return {}
    names = ("queue_time_ms", "time_to_first_token_ms", "generation_time_ms")
    values = {name: value for name in names if isinstance(value := metrics.get(name), (int, float))}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


_OUTCOMES = {401: "authentication", 403: "authentication", 429: "rate_limited", 503: "unavailable"}


def _refused(sample: Sample, headers: Mapping[str, str], body: bytes) -> None:
    try:
        value: Any = json.loads(body[:_READ_BYTES])
    except ValueError:
        value = None
    code, message = code_and_message(value.get("error") if isinstance(value, dict) else None)
    outcome = _OUTCOMES.get(sample.status or 0) or ("server" if (sample.status or 500) >= 500 else "bad_request")
    _fail(sample, outcome, ": ".join(filter(None, (f"HTTP {sample.status}", code, message))))
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return
    sample.retry_after = seconds if 0 <= seconds < math.inf else None


def _fail(sample: Sample, outcome: str, message: str) -> None:
    sample.outcome, sample.message = outcome, message
