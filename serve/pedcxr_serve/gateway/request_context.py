"""All that belongs to one request in flight: its body, its place in the queue, its charge and its audit entry."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pedcxr_serve.gateway.accounting.metrics import RequestRecord, TenantMetrics
from pedcxr_serve.gateway.accounting.usage import TokenUsage
from pedcxr_serve.gateway.request.body import Body
from pedcxr_serve.gateway.request.validation import AcceptedRequest
from pedcxr_serve.gateway.scheduler import OUTPUT_COST, Ticket
from pedcxr_serve.gateway.state import State

_CHARS_PER_TOKEN = 4  # of English text; the charge is corrected by the engine's count
_TEMPLATE_TOKENS = 10
_MAX_IMAGES = 64  # the engine refuses larger images, and a head of a file may claim any size


class RequestContext:
    """A request from its admission to its end. The body is released as soon as it has been sent."""

    def __init__(self, record: RequestRecord, ticket: Ticket, body: Body) -> None:
        self.record, self.ticket, self.body = record, ticket, body
        self.prompt_tokens = 0
        self.pixel_cost = 0.0
        self.output_tokens = 0  # so far, by the engine's count
        self._film_digest: str | None = None
        self._words_digest: str | None = None
        self._accepted: AcceptedRequest | None = None
        self._audit_fields: dict[str, object] = {}
        self.stream = self.forward_usage = self.forward_counts = False
        self.max_tokens = 0
        self.film: bytes | None = None  # SHA-256
        self.response_headers: list[tuple[bytes, bytes]] = []

    def accept(self, accepted: AcceptedRequest, state: State) -> None:
        """Take over the validated request and estimate its prompt tokens."""
        self._accepted, self.film = accepted, accepted.film
        self.stream, self.max_tokens = accepted.stream, accepted.max_tokens
        self.forward_usage, self.forward_counts = accepted.include_usage, accepted.include_counts
        if state.demo:
            self.response_headers.append((b"x-pedcxr-demo", b"1"))
        revision = state.revision_of(accepted.model)
        if revision is not None:
            self.response_headers.append((b"x-pedcxr-revision", revision.encode()))
        if accepted.film is None:
            self.response_headers.append((b"x-pedcxr-film", b"none"))
        if accepted.ignored:
            self.response_headers.append((b"x-pedcxr-ignored", ", ".join(accepted.ignored).encode()))
        self.record.image_tokens = state.image_tokens if accepted.film is not None else 0
        # An image larger than the model's input costs as many images of that size as it has pixels.
        images = min(_MAX_IMAGES, accepted.pixels / math.prod(state.image_size))
        self.pixel_cost = self.record.image_tokens * max(0.0, images - 1)
        words = len(accepted.words) // _CHARS_PER_TOKEN + _TEMPLATE_TOKENS
        self.prompt_tokens = self.record.image_tokens + words
        self.record.model = accepted.model
        self._audit_fields = {
            "model": accepted.model,
            "revision": revision,
            "max_tokens": accepted.max_tokens,
            "temperature": accepted.temperature,
            "stream": accepted.stream,
        }
        if state.audit is not None:
            if accepted.film is not None:
                self._film_digest = state.audit.digest(accepted.film)
            self._words_digest = state.audit.digest(accepted.words.encode("utf-8", "surrogatepass"))

    def parts(self) -> tuple[bytes | memoryview, ...]:
        """Return the body for the engine, empty after `release`."""
        return self._accepted.parts if self._accepted else ()

    def release(self) -> None:
        """Release the body and its share of the memory. Idempotent."""
        self._accepted = None
        self.body.release()

    def charge(self, metrics: TenantMetrics) -> None:
        """Add the cost of the request to the metrics, and set its usage for the count, by the engine's count.

        If the client left before the end, the estimated prompt and the output tokens so far are counted.
        """
        record = self.record
        if record.usage is None and record.outcome == "client_left" and self.ticket.service:
            record.usage = TokenUsage(self.prompt_tokens, self.output_tokens)
        metrics.service_cost.labels(record.tenant.name).inc(max(0.0, self.ticket.service))

    def final_cost(self) -> float:
        """Return the cost by the engine's count, or the cost charged so far if there is no count."""
        usage = self.record.usage
        if usage is None:
            return self.ticket.service
        return self.prompt_cost(usage.prompt_tokens) + OUTPUT_COST * usage.output

    def prompt_cost(self, tokens: int) -> float:
        """Return the cost of the prompt: its tokens, and the pixels of an image that is larger than the model's."""
        return tokens + self.pixel_cost

    def audit_entry(self, revision: str | None) -> Mapping[str, object]:
        """Return the fields of the audit line; ``revision`` is that of the checkpoint.

        Image and prompt appear as keyed digests only, the report not at all.
        """
        record = self.record
        usage = record.usage or TokenUsage()
        return {
            "request_id": record.request_id,
            "tenant": record.tenant.name,
            "key": record.key,
            "address": record.address,
            "outcome": record.outcome,
            "reason": record.reason or None,
            "status": record.status,
            "film": self._film_digest,
            "prompt": self._words_digest,
            "prompt_profile": record.note.prompt_profile,
            "overrides": record.note.overrides,
            "revision": revision,
            **self._audit_fields,
            "prompt_tokens": usage.prompt_tokens,
            "output_tokens": usage.output,
            "finish_reason": record.finish_reason,
            "seconds": round(record.seconds, 4),
        }
