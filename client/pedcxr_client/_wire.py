"""What goes over the wire, and what a listing of models says. Pure."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, cast

from . import _failures, prompt
from ._errors import ConfigurationError

if TYPE_CHECKING:
    from .image import EncodedImage

JSON_HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream"}
NO_KEY = "none"  # the SDK insists on a key; a server without tenants does not look at it
_IMAGE_GOES_HERE = "data:image"


def default_headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request. Those of OpenAI's own service, which the SDK takes from the environment, stay home."""
    import openai

    home = cast("str", openai.Omit())
    return {
        "Authorization": f"Bearer {api_key or NO_KEY}",
        "OpenAI-Organization": home,
        "OpenAI-Project": home,
    }


def trust(url: str) -> ssl.SSLContext | bool:
    """Whose certificates to trust: for plain http nobody's, which saves reading them all (30 ms)."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("http://") else True


def payload(model: str, words: str, film: EncodedImage, max_tokens: int) -> bytes:
    """The JSON of a chat completion, with the image spliced in: base64 needs no escaping, and json would walk it all.

    The messages come first, so the first mark in the JSON is the image's and never a word of the caller's.
    """
    frame = json.dumps(
        {
            "messages": prompt.messages(words, _IMAGE_GOES_HERE),
            "model": model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        separators=(",", ":"),
    ).encode()
    head, _, tail = frame.partition(_IMAGE_GOES_HERE.encode())
    return b"".join((head, b"data:", film.mime.encode(), b";base64,", film.base64, tail))


def only_model(listing: object, url: str) -> str:
    """The one model of a ``GET /v1/models`` answer.

    Raises:
        ConfigurationError: if there are several, or none.
        ServerFailed: if it is no such answer.
    """
    entries = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        raise _failures.not_openai(url)
    names = [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    if len(names) != 1:
        offered = ", ".join(sorted(names)[:10]) or "none"
        raise ConfigurationError(f"model: name one (--model); {url} offers {_failures.clean(offered)}")
    return str(names[0])
