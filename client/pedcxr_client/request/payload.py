"""What goes over the wire. Pure."""

from __future__ import annotations

import json
import os
import ssl
from typing import TYPE_CHECKING, cast

from pedcxr_client.errors import ConfigurationError
from pedcxr_client.request.prompts import Prompt, messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx2

    from pedcxr_client.films.film import EncodedImage
    from pedcxr_client.types import Check

NO_KEY = "none"  # the SDK insists on a key; a server without tenants does not look at it
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
_IMAGE_GOES_HERE = "data:image"
_MARK = f'"url":"{_IMAGE_GOES_HERE}"'.encode()  # no text can hold it: within one, quotes are escaped


def default_headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request. Those of OpenAI's own service, which the SDK takes from the environment, stay home."""
    import openai

    home = cast("str", openai.Omit())
    return {
        "Authorization": f"Bearer {api_key or NO_KEY}",
        "OpenAI-Organization": home,
        "OpenAI-Project": home,
    }


def headers(prompt: Prompt, checks: Iterable[Check]) -> dict[str, str]:
    """Headers of a chat completion; the server's audit log keeps the profile's tag and the checks set aside."""
    noted = {"X-Pedcxr-Prompt": prompt.profile.tag}
    if allowed := ",".join(check.name for check in checks if check.allowed):
        noted["X-Pedcxr-Allow"] = allowed
    return {"Content-Type": "application/json", "Accept": "text/event-stream"} | noted


def trust(url: str) -> ssl.SSLContext | bool:
    """Whose certificates to trust: for plain http nobody's, which saves reading them all (30 ms).

    For https those of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``, on loopback too, where the SDK reads no environment; if
    neither is set, the system's.

    Raises:
        ConfigurationError: if the file cannot be used.
    """
    if url.startswith("http://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    file, folder = os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
    if file is None and folder is None:
        return True
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:
        raise ConfigurationError("SSL_CERT_FILE: give a readable PEM file of certificates to trust") from error


def pool() -> httpx2.Limits:
    """As many connections as there are requests at once, all kept for the next ones. What bounds them is the caller's
    concurrency; the SDK's own pool keeps 100, and would open and close the others for every film."""
    import httpx2

    return httpx2.Limits(max_connections=None, max_keepalive_connections=None)


def payload(model: str, prompt: Prompt, film: EncodedImage, max_tokens: int, *, stream: bool = True) -> bytes:
    """The JSON of a chat completion, with the image spliced in: base64 needs no escaping, json would walk it all."""
    frame = json.dumps(
        {
            "messages": messages(prompt.user, _IMAGE_GOES_HERE, system=prompt.profile.system),
            "model": model,
            "max_tokens": max_tokens,
            "temperature": 0,
            **(_STREAMED if stream else {}),
        },
        separators=(",", ":"),
    ).encode()
    head, _, tail = frame.partition(_MARK)
    return b"".join((head, b'"url":"data:', film.mime.encode(), b";base64,", film.base64, b'"', tail))
