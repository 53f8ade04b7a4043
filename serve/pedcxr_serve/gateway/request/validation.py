"""What a request may ask for, and what of it the engine gets to see. Pure; the allowed fields stand in `fields`."""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request import fields, image_splice
from pedcxr_serve.gateway.request.fields import Field
from pedcxr_serve.gateway.request.image_splice import IMAGE_URL, NO_ADDRESS, Refused, refuse

__all__ = ["Accepted", "Refused", "Rules", "apply", "cache_salt", "film_id"]

_TABLE = fields.by_parent()
_TYPES: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "list": list,
}
_MOST_PARTS = 16
_MOST_STOPS = 4


@dataclass(frozen=True, slots=True)
class Rules:
    """What the server's configuration allows everybody.

    Attributes:
        model: the name put in where a request has none; always served.
        max_new_tokens: of an answer, at most.
        system_chars: of all system texts together, at most.
        text_chars: of all texts together, at most.
        secret: key of the cache salts.
        served: names that the engine serves besides, such as adapters'.
    """

    model: str
    max_new_tokens: int
    system_chars: int = 8_000
    text_chars: int = 32_000
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    served: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request as the engine will get it.

    Attributes:
        parts: its body; the film is a view of the client's.
        usage_wanted: whether the client gets the counting event of a stream.
        max_tokens: of the answer, at most.
        film: SHA-256 of its bytes, or None.
        words: all texts, for a digest and an estimate of tokens; never for a log.
    """

    parts: tuple[bytes | memoryview, ...]
    model: str
    stream: bool
    usage_wanted: bool
    max_tokens: int
    temperature: float
    film: bytes | None
    words: str

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(len(part) for part in self.parts)


def apply(body: bytes | bytearray, tenant: Tenant, rules: Rules) -> Accepted:
    """Check a body and rewrite it.

    Raises:
        Refused: with the field and the remedy; never with text of the request beyond a field's name.
    """
    stand_in = image_splice.stand_in()
    text, film = image_splice.cut(body, stand_in, 8 * rules.text_chars + 65_536)
    asked = _object(image_splice.parse(text), "", "")
    words, urls, system = _messages(asked["messages"], stand_in)
    if urls != (0 if film is None else 1):
        refuse("at most one image, as the `url` of an `image_url` part", "messages", "too_many_images")
    if system > rules.system_chars:
        refuse(f"system texts of {system:,} characters; allowed are {rules.system_chars:,}", "messages", "too_long")
    if len(words) > rules.text_chars:
        refuse(f"texts of {len(words):,} characters; allowed are {rules.text_chars:,}", "messages", "too_long")
    model = asked.get("model", rules.model)
    # Here, not by the engine's 404: what a client calls a model may be a patient's name, and `model` is audited.
    if model not in {rules.model, *rules.served} or not tenant.may_use(model):
        refuse("no such model; GET /v1/models lists them", "model", "model_not_found", 404)
    stream = asked.get("stream", False)
    if stream and not tenant.may_stream:
        refuse("this key may not stream; send stream: false", "stream", "stream_not_allowed", 403)
    if "stream_options" in asked and not stream:
        refuse("only together with stream: true", "stream_options", "invalid_value")
    if "top_logprobs" in asked and not asked.get("logprobs"):
        refuse("only together with logprobs: true", "top_logprobs", "invalid_value")
    usage_wanted = bool(asked.get("stream_options", {}).get("include_usage", False))
    out = _rewritten(asked, tenant, rules, model)
    if film is not None:
        _identify(out, film_id(out["cache_salt"], film.sha256))
    try:
        data = json.dumps(out, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        refuse("a text holds half of a surrogate pair; send whole characters", "messages", "invalid_text")
    parts: tuple[bytes | memoryview, ...] = (data,)
    if film is not None:
        head, _, tail = data.partition(stand_in.encode())
        parts = (head, film.url, tail)
    return Accepted(
        parts,
        model,
        stream,
        usage_wanted,
        out["max_tokens"],
        float(out.get("temperature", 0)),
        None if film is None else film.sha256,
        words,
    )


def cache_salt(secret: bytes, tenant: str) -> str:
    """A word that keeps a tenant's cached prefixes from all others; hex."""
    return hmac.digest(secret, tenant.encode(), "sha256").hex()


def film_id(salt: str, sha256: bytes) -> str:
    """The engine's name for a film, which no other tenant can have; hex.

    vLLM 0.32 keys its cache of embeddings by the image alone, so that one tenant would see by the time it takes what
    another has sent; ``cache_salt`` covers the KV cache only. A ``uuid`` is taken in place of vLLM's own hash
    (``multimodal/processing/inputs.py``), and spares it hashing the pixels.
    """
    return hmac.digest(salt.encode(), sha256, "sha256").hex()


def _object(value: object, parent: str, at: str) -> dict[str, Any]:
    """The known fields of an object, checked; null means absent."""
    if not isinstance(value, dict):
        refuse("allowed is an object", at or None, "invalid_type")
    known, found = _TABLE[parent], {}
    for name, item in value.items():
        path = f"{at}.{name}" if at else name
        if item is None:
            continue
        if name not in known:
            refuse("this field is not served; allowed are " + ", ".join(known), path[:200], "unknown_field")
        found[name] = _value(known[name], item, path)
    for field_ in known.values():
        if field_.required and field_.name not in found:
            refuse(f"required: {field_.allowed()}", f"{at}.{field_.name}".lstrip("."), "missing_field")
    return found


def _value(known: Field, value: object, path: str) -> object:
    """Checked by the table; objects that it knows are entered."""
    kinds = [kind for kind in known.kinds if isinstance(value, _TYPES[kind])]
    if not kinds or (isinstance(value, bool) and "boolean" not in kinds):
        refuse(f"allowed is {known.allowed()}", path, "invalid_type")
    size = len(value) if isinstance(value, (str, list)) else value
    if isinstance(size, (int, float)) and not isinstance(value, bool) and not known.low <= size <= known.high:
        refuse(f"allowed is {known.allowed()}", path, "invalid_value")
    if known.choices and value not in known.choices:
        refuse(f"allowed is {known.allowed()}", path, "invalid_value")
    return _object(value, known.path, path) if isinstance(value, dict) else value


def _messages(messages: list[Any], stand_in: str) -> tuple[str, int, int]:
    """Check messages in place: all their words, the number of films, the characters of system texts."""
    texts, films, system = [], 0, 0
    for index, raw in enumerate(messages):
        at = f"messages[{index}]"
        message = messages[index] = _object(raw, fields.MESSAGE, at)
        own = _content(message, stand_in, f"{at}.content")
        words = [text for text in own if text != stand_in]
        if len(words) < len(own) and message["role"] != "user":
            refuse("only a message of the user may hold an image", f"{at}.content", "invalid_value")
        films += len(own) - len(words)
        texts += words
        system += sum(map(len, words)) if message["role"] == "system" else 0
    return "\n".join(texts), films, system


def _content(message: dict[str, Any], stand_in: str, at: str) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [_text(content, stand_in, at)]
    if not 1 <= len(content) <= _MOST_PARTS:
        refuse(f"allowed is a text, or a list of 1 to {_MOST_PARTS} parts", at, "invalid_value")
    found = []
    for index, raw in enumerate(content):
        here = f"{at}[{index}]"
        part = content[index] = _object(raw, fields.PART, here)
        if set(part) != {"type", part["type"]}:
            refuse(f"a part of type {part['type']} holds `{part['type']}` and nothing else", here, "invalid_value")
        if part["type"] == "text":
            found.append(_text(part["text"], stand_in, f"{here}.text"))
        elif part["image_url"]["url"] != stand_in:
            refuse(NO_ADDRESS, IMAGE_URL, "invalid_image_url")
        else:
            found.append(stand_in)
    return found


def _text(text: str, stand_in: str, at: str) -> str:
    if stand_in in text:
        refuse("an image stands in a text; send it as an `image_url` part", at, "invalid_value")
    return text


def _identify(out: dict[str, Any], uuid: str) -> None:
    for message in out["messages"]:
        for part in message["content"]:
            if isinstance(part, dict) and part["type"] == "image_url":
                part["uuid"] = uuid


def _rewritten(asked: dict[str, Any], tenant: Tenant, rules: Rules, model: str) -> dict[str, Any]:
    dropped = {"user", "n", "max_completion_tokens", "response_format", "stream_options"}
    if not tenant.may_sample:
        dropped |= {known.name for known in fields.FIELDS if known.sampling}
    out = {name: value for name, value in asked.items() if name not in dropped}
    stops = asked.get("stop", ())
    if isinstance(stops, list) and not (
        1 <= len(stops) <= _MOST_STOPS and all(isinstance(stop, str) and 1 <= len(stop) <= 64 for stop in stops)
    ):
        refuse(f"allowed is a text or 1 to {_MOST_STOPS} texts of 1 to 64 characters", "stop", "invalid_value")
    wanted = (asked[name] for name in ("max_tokens", "max_completion_tokens") if name in asked)
    out["max_tokens"] = min(rules.max_new_tokens, *wanted, rules.max_new_tokens)
    out["model"] = model
    out.setdefault("temperature", 0)
    if asked.get("stream"):
        out["stream_options"] = {"include_usage": True}  # the meter reads it
    out["cache_salt"] = cache_salt(rules.secret, tenant.name)
    return out
