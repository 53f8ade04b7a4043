"""One request on its way: what was asked, its place in line, what is charged and recorded for it."""

from __future__ import annotations

from collections.abc import Mapping

from pedcxr_serve.gateway.accounting.metrics import Meter, Record
from pedcxr_serve.gateway.answer import Usage
from pedcxr_serve.gateway.request.body import Body
from pedcxr_serve.gateway.request.validation import AcceptedRequest
from pedcxr_serve.gateway.scheduler import OUTPUT_COST, Ticket
from pedcxr_serve.gateway.state import State

_CHARS_A_TOKEN = 4  # of English text; the engine's own count corrects it
_TEMPLATE_TOKENS = 10


class Job:
    """Holds the body until it was sent on, and not a moment longer."""

    def __init__(self, record: Record, ticket: Ticket, body: Body) -> None:
        self.record, self.ticket, self.body = record, ticket, body
        self.prompt_tokens = 0
        self.events = 0
        self._film_digest: str | None = None
        self._words_digest: str | None = None
        self._accepted: AcceptedRequest | None = None
        self._asked: dict[str, object] = {}
        self.stream = self.usage_wanted = False
        self.max_tokens = 0

    def accept(self, accepted: AcceptedRequest, state: State) -> None:
        """Take a checked request; estimates its prompt."""
        self._accepted = accepted
        self.stream, self.usage_wanted, self.max_tokens = accepted.stream, accepted.include_usage, accepted.max_tokens
        self.record.image_tokens = state.image_tokens if accepted.film is not None else 0
        words = len(accepted.words) // _CHARS_A_TOKEN + _TEMPLATE_TOKENS
        self.prompt_tokens = self.record.image_tokens + words
        self._asked = {
            "model": accepted.model,
            "max_tokens": accepted.max_tokens,
            "temperature": accepted.temperature,
            "stream": accepted.stream,
        }
        if state.audit is not None:
            if accepted.film is not None:
                self._film_digest = state.audit.digest(accepted.film)
            self._words_digest = state.audit.digest(accepted.words.encode("utf-8", "surrogatepass"))

    def parts(self) -> tuple[bytes | memoryview, ...]:
        """The body for the engine."""
        return self._accepted.parts if self._accepted else ()

    def release(self) -> None:
        """Let go of the body."""
        self._accepted = None
        self.body.release()

    def settle(self, meter: Meter) -> None:
        """Count it, by the engine's own numbers, or by what was seen if the client left before they came."""
        record = self.record
        if record.usage is None and record.outcome == "client_left" and self.ticket.service:
            record.usage = Usage(self.prompt_tokens, self.events)
        meter.service_cost.labels(record.tenant.name).inc(max(0.0, self.ticket.service))
        meter.count(record)

    def true_cost(self) -> float:
        """By the engine's count, once it is known, else what was charged."""
        usage = self.record.usage
        return self.ticket.service if usage is None else usage.prompt_tokens + OUTPUT_COST * usage.output

    def audit_entry(self, revision: str | None) -> Mapping[str, object]:
        """The line of the audit log: nothing of film, prompt or report but digests under a key.

        Args:
            revision: of the checkpoint that serves.
        """
        record = self.record
        usage = record.usage or Usage()
        return {
            "request_id": record.request_id,
            "tenant": record.tenant.name,
            "outcome": record.outcome,
            "reason": record.reason or None,
            "status": record.status,
            "film": self._film_digest,
            "prompt": self._words_digest,
            "prompt_profile": record.note.prompt_profile,
            "overrides": record.note.overrides,
            **self._asked,
            "revision": revision,
            "prompt_tokens": usage.prompt_tokens,
            "output_tokens": usage.output,
            "finish_reason": record.finish,
            "seconds": round(record.seconds, 4),
        }
