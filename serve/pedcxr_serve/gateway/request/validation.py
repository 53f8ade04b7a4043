"""Validation of a chat completion request and its translation for the engine. No I/O.

The Structs list every field that is served; `SCHEMA` checks them and prints the table in docs/http-api.md.
"""

from __future__ import annotations

import functools
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pedcxr_serve.config.schema import FieldError, Schema
from pedcxr_serve.gateway.auth.models import ServedAdapter, may_use
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request import ignored_fields, image_splice
from pedcxr_serve.gateway.request.conversation import Turn, turns
from pedcxr_serve.gateway.request.image_splice import Film, refuse

_MAX_PATH = 200
_INDEX = re.compile(r"\[\d+\]")
_SAMPLING = "dropped unless the tenant may sample"
_BENCH = "dropped unless the tenant may bench"
_SHORT = 16  # tokens; clients test a connection with a text of a few tokens

_MaxTokens = Annotated[int, Meta(ge=1, le=1_000_000)]
_Stop = Annotated[str, Meta(min_length=1, max_length=64)]


class StreamOptions(Struct):
    """`stream_options` of OpenAI's API."""

    include_usage: Annotated[bool, Meta(description="whether a stream ends with an event that counts tokens")] = False
    continuous_usage_stats: Annotated[
        bool, Meta(description="whether every event counts the tokens so far; only with `include_usage` (vLLM)")
    ] = False
    include_obfuscation: Annotated[bool, Meta(description="accepted; no effect")] = False


class ResponseFormat(Struct):
    """`response_format` of OpenAI's API."""

    type: Annotated[Literal["text"], Meta(description="format of the report")]


class ImageUrl(Struct):
    """`image_url` of a content part."""

    url: Annotated[
        str,
        Meta(
            description="`data:image/TYPE;base64,...` or `data:application/dicom;base64,...`; addresses are not fetched"
        ),
    ]
    detail: Annotated[
        Literal["auto", "low", "high", "original"], Meta(description="accepted; no effect on this model")
    ] = "auto"


class ContentPart(Struct):
    """One part of a message: a text or an image."""

    type: Annotated[
        Literal["text", "image_url"] | None, Meta(description="which of the next two fields the part has")
    ] = None
    text: Annotated[str | None, Meta(description="text of a part of type `text`")] = None
    image_url: Annotated[
        ImageUrl | str | None,
        Meta(description="image of a part of type `image_url`, or its URL alone; one per request, from the user"),
    ] = None


class Message(Struct):
    """One message of the conversation."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"],
        Meta(description="author of the message; `developer` means `system`"),
    ]
    content: Annotated[
        str | Annotated[list[ContentPart], Meta(min_length=1, max_length=16)],
        Meta(description="text, or parts of text and image"),
    ]


class ChatRequest(Struct):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=64, description="the conversation")]
    model: Annotated[
        Annotated[str, Meta(min_length=1, max_length=128)] | None,
        Meta(description="a name from `GET /v1/models`; none = the default model"),
    ] = None
    max_tokens: Annotated[
        _MaxTokens | None, Meta(description="maximum length of the report; capped by `engine.max_new_tokens`")
    ] = None
    max_completion_tokens: Annotated[
        _MaxTokens | None, Meta(description="newer name of `max_tokens`; the smaller of the two applies")
    ] = None
    stream: Annotated[bool, Meta(description="send server-sent events; only for tenants that may stream")] = False
    stream_options: Annotated[StreamOptions | None, Meta(description="only with `stream`")] = None
    n: Annotated[int, Meta(ge=1, le=1, description="number of reports per request")] = 1
    stop: Annotated[
        _Stop | Annotated[list[_Stop], Meta(min_length=1, max_length=4)] | None,
        Meta(description="text that ends the report"),
    ] = None
    logprobs: Annotated[bool, Meta(description="return the log probabilities of the tokens")] = False
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=5)] | None, Meta(description="alternatives per token; only with `logprobs`")
    ] = None
    return_token_ids: Annotated[bool, Meta(description="return token ids besides the text (vLLM)")] = False
    response_format: Annotated[ResponseFormat | None, Meta(description="only `text`")] = None
    temperature: Annotated[float, Meta(ge=0, le=2, description=f"0 = greedy; {_SAMPLING}")] = 0
    top_p: Annotated[Annotated[float, Meta(ge=0.01, le=1)] | None, Meta(description=_SAMPLING)] = None
    seed: Annotated[Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None, Meta(description=_SAMPLING)] = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description=_SAMPLING)] = 0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2, description=_SAMPLING)] = 0
    ignore_eos: Annotated[bool, Meta(description=f"write until `max_tokens`; {_BENCH}")] = False
    min_tokens: Annotated[int, Meta(ge=0, le=1_000_000, description=_BENCH)] = 0


SCHEMA = Schema(ChatRequest)
_SAMPLING_FIELDS = {name for name, item in SCHEMA.fields.items() if item.description.endswith(_SAMPLING)}
_BENCH_FIELDS = {name for name, item in SCHEMA.fields.items() if item.description.endswith(_BENCH)}


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of the server that hold for every tenant.

    Attributes:
        model: the default model, which is always served.
        max_new_tokens: maximum length of a report.
        system_chars: maximum length of all system texts together.
        text_chars: maximum length of all texts together.
        secret: key of the cache salts.
        served: further models of the engine, such as adapters.
        adapters: what is known of the adapters among them, by name.
    """

    model: str
    max_new_tokens: int
    system_chars: int = 8_000
    text_chars: int = 32_000
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    served: frozenset[str] = frozenset()
    adapters: Mapping[str, ServedAdapter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A validated request as the engine receives it.

    Attributes:
        parts: the body; the film in it is a view of the client's body.
        include_usage: whether the client receives the event of a stream that counts tokens.
        include_counts: whether the client receives the count in every other event too.
        max_tokens: maximum length of the report.
        film: SHA-256 of the film's bytes, or None.
        pixels: of the film by the head of its file, 0 without a film or if unknown.
        words: all texts as the model sees them, for a digest and an estimate of their tokens; must not be logged.
        ignored: paths of the fields that had no effect.
    """

    parts: tuple[bytes | memoryview, ...]
    model: str
    stream: bool
    include_usage: bool
    include_counts: bool
    max_tokens: int
    temperature: float
    film: bytes | None
    pixels: int
    words: str
    ignored: tuple[str, ...] = ()


def apply(body: bytes | bytearray, tenant: Tenant, rules: Rules) -> AcceptedRequest:
    """Check a request body and rewrite it for the engine.

    Raises:
        RequestRefused: names the field and the remedy. No text of the request is repeated, except a field's name.
    """
    placeholder = image_splice.placeholder()
    text, film = image_splice.extract_image(body, placeholder, 8 * rules.text_chars + 65_536)
    value = image_splice.parse(text)
    ignored = ignored_fields.remove_ignored(value)
    request = _checked(value)
    conversation = turns(request["messages"], placeholder, has_film=film is not None)
    words = "\n".join(turn.text for turn in conversation)
    _check_lengths(conversation, len(words), rules)
    limits = [request[name] for name in ("max_tokens", "max_completion_tokens") if name in request]
    model = request.get("model", tenant.default_model or rules.model)
    # Checked here, not by the engine's 404: an unknown model name may be a patient's name, and `model` is audited.
    if model not in {rules.model, *rules.served} or not may_use(tenant, model, rules.adapters):
        refuse("no such model; GET /v1/models lists them", "model", "model_not_found", 404)
    stream = request.get("stream", False)
    if stream and not tenant.may_stream:
        refuse("this key may not stream; send stream: false", "stream", "stream_not_allowed", 403)
    if "stream_options" in request and not stream:
        refuse("requires stream: true", "stream_options", "invalid_value")
    if "top_logprobs" in request and not request.get("logprobs"):
        refuse("requires logprobs: true", "top_logprobs", "invalid_value")
    if film is None and not tenant.may_omit_film and min(limits, default=rules.max_new_tokens) > _SHORT:
        refuse(
            "no film: the model would invent a report. Send the film as an `image_url` part of the user's message; if "
            "you did, your client removed it: declare the model as one that sees images",
            "messages",
            "film_missing",
        )
    without_effect = _without_effect(request, tenant)
    payload = _payload(request, tenant, rules, model, without_effect)
    uuid = None if film is None else film_id(payload["cache_salt"], film.sha256)
    payload["messages"] = [turn.message(placeholder, uuid) for turn in conversation]
    payload["max_tokens"] = min([rules.max_new_tokens, *limits])
    options = request.get("stream_options", {})
    return AcceptedRequest(
        _splice(payload, placeholder, film),
        model,
        stream,
        include_usage=options.get("include_usage", False),
        include_counts=options.get("include_usage", False) and options.get("continuous_usage_stats", False),
        max_tokens=payload["max_tokens"],
        temperature=float(payload["temperature"]),
        film=None if film is None else film.sha256,
        pixels=0 if film is None else film.pixels,
        words=words,
        ignored=(*ignored, *sorted(without_effect)),
    )


@functools.lru_cache(maxsize=4096)
def cache_salt(secret: bytes, tenant: str, adapter: str = "") -> str:
    """Return a hexadecimal salt that separates a tenant's cached prefixes from those of others, for each adapter."""
    return hmac.digest(secret, "\0".join(filter(None, (tenant, adapter))).encode(), "sha256").hex()


def film_id(salt: str, sha256: bytes) -> str:
    """Return the engine's name for a film, hexadecimal and different for every tenant and adapter.

    vLLM 0.32 keys its cache of embeddings by the image alone, so response times would show one tenant what another has
    sent; ``cache_salt`` covers the KV cache only. vLLM uses a ``uuid`` instead of its own hash of the pixels
    (``multimodal/processing/inputs.py``).
    """
    return hmac.digest(salt.encode(), sha256, "sha256").hex()


def _checked(value: object) -> dict[str, Any]:
    try:
        return SCHEMA.check(value)
    except FieldError as error:
        is_body = error.code == "invalid_type" and not error.path
        reason = ignored_fields.REFUSED.get(_INDEX.sub("[]", error.path)) if error.code == "unknown_field" else None
        refuse(reason or str(error), None if is_body else error.path[:_MAX_PATH], error.code)


def _check_lengths(conversation: list[Turn], text_chars: int, rules: Rules) -> None:
    system_chars = sum(len(turn.text) for turn in conversation if turn.role == "system")
    if system_chars > rules.system_chars:
        refuse(f"system texts have {system_chars:,} characters; maximum {rules.system_chars:,}", "messages", "too_long")
    if text_chars > rules.text_chars:
        refuse(f"texts have {text_chars:,} characters; maximum {rules.text_chars:,}", "messages", "too_long")


def _without_effect(request: dict[str, Any], tenant: Tenant) -> set[str]:
    """Return the fields that the tenant may not use and whose value differs from the default."""
    reserved = (set() if tenant.may_sample else _SAMPLING_FIELDS) | (set() if tenant.may_bench else _BENCH_FIELDS)
    return {name for name in reserved & set(request) if request[name] != SCHEMA.fields[name].default}


def _payload(
    request: dict[str, Any], tenant: Tenant, rules: Rules, model: str, without_effect: set[str]
) -> dict[str, Any]:
    dropped = {"messages", "n", "max_completion_tokens", "response_format", "stream_options", *without_effect}
    payload = {name: value for name, value in request.items() if name not in dropped}
    payload["model"] = model
    payload.setdefault("temperature", 0)
    if request.get("stream"):
        # For token accounting, and for charging while the stream runs: an event may hold several tokens.
        payload["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    payload["cache_salt"] = cache_salt(rules.secret, tenant.name, model if model in rules.adapters else "")
    return payload


def _splice(payload: dict[str, Any], placeholder: str, film: Film | None) -> tuple[bytes | memoryview, ...]:
    """Return the engine's body, with the film's URL in place of the placeholder."""
    try:
        data = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        refuse("a text contains half of a surrogate pair; send whole characters", "messages", "invalid_text")
    if film is None:
        return (data,)
    head, _, tail = data.partition(placeholder.encode())
    return (head, *film.url, tail)
