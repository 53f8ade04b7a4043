"""What is sent for one film: the image, the prompt, the headers and the JSON body."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pedcxr_client.checks import rules
from pedcxr_client.errors import InputError
from pedcxr_client.films.film import EncodedImage, encode, read
from pedcxr_client.films.geometry import DISPLAY, MODEL_SIZE
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import Prompt, messages

if TYPE_CHECKING:
    from pedcxr_client.checks.rules import CallerFacts
    from pedcxr_client.films.age import Age
    from pedcxr_client.films.film import FilmSource
    from pedcxr_client.films.geometry import Preparation
    from pedcxr_client.films.header.facts import Facts
    from pedcxr_client.types import Check, Sex

_STREAM_FIELDS = {"stream": True, "stream_options": {"include_usage": True}}
_IMAGE_PLACEHOLDER = "data:image"
# A prompt cannot contain this byte sequence, because JSON escapes the quotes of a text.
_SPLIT_MARK = f'"url":"{_IMAGE_PLACEHOLDER}"'.encode()


@dataclass(frozen=True, slots=True, repr=False)
class PreparedRequest:
    """One film, encoded and checked, and its prompt, with the age and the sex as in the prompt."""

    image: EncodedImage
    checks: tuple[Check, ...]
    prompt: Prompt
    age: Age | None
    sex: Sex | None
    view: str | None


def prepare(request: FilmRequest, size: tuple[int, int] | None = None) -> PreparedRequest:
    """Read, check and encode one film, and write its prompt. Checks of the header run before the pixels are decoded.

    ``size`` is the width and height of the model's input in pixels, or None if the server does not state them.
    """
    facts_of_caller = request.caller_facts()
    if isinstance(request.film, EncodedImage):
        image = _check_preparation(request.film, request.preparation.sized(size))
    else:
        image = _encode_film(request.film, facts_of_caller, request.preparation.sized(size))
    checks = rules.check(image.facts, facts_of_caller, image.stats)
    rules.enforce(checks)
    view = image.facts.view
    return PreparedRequest(
        image=image,
        checks=checks,
        prompt=write_prompt(image.facts, request),
        age=facts_of_caller.age_of(image.facts),
        sex=facts_of_caller.sex_of(image.facts),
        view=None if view is None else view.value or None,
    )


def write_prompt(facts: Facts, request: FilmRequest) -> Prompt:
    """Return the prompt of a film, without an age or a sex that is contradictory and not allowed."""
    facts_of_caller = request.caller_facts()
    age, sex = facts_of_caller.age_of(facts), facts_of_caller.sex_of(facts)
    return request.prompt_profile.prompt(age, sex, indication=request.indication)


def headers(prompt: Prompt, checks: tuple[Check, ...]) -> dict[str, str]:
    """Return the headers of a chat completion. The server's audit log records the profile and the allowed checks."""
    audit_headers = {"X-Pedcxr-Prompt": prompt.profile.tag}
    if overrides := ",".join(check.name for check in checks if check.allowed):
        audit_headers["X-Pedcxr-Allow"] = overrides
    return {"Content-Type": "application/json", "Accept": "text/event-stream"} | audit_headers


def body(model: str, prompt: Prompt, image: EncodedImage, max_tokens: int, *, stream: bool = True) -> bytes:
    """Return the JSON body of a chat completion.

    The base64 text of the image is inserted into the finished JSON. It needs no escaping, and ``json.dumps`` would
    scan megabytes for characters to escape.
    """
    text = json.dumps(
        {
            "messages": messages(prompt.user, _IMAGE_PLACEHOLDER, system=prompt.profile.system),
            "model": model,
            "max_tokens": max_tokens,
            "temperature": 0,
            **(_STREAM_FIELDS if stream else {}),
        },
        separators=(",", ":"),
    ).encode()
    head, _, tail = text.partition(_SPLIT_MARK)
    return b"".join((head, b'"url":"data:', image.mime.encode(), b";base64,", image.base64, b'"', tail))


def _check_preparation(image: EncodedImage, preparation: Preparation) -> EncodedImage:
    if preparation != DISPLAY and preparation.sized(MODEL_SIZE).tag != image.preparation:
        raise InputError(
            f"preparation: the EncodedImage was prepared as {image.preparation}; omit it, or pass the film"
        )
    return image


def _encode_film(source: FilmSource, facts_of_caller: CallerFacts, preparation: Preparation) -> EncodedImage:
    undecoded = read(source)
    rules.enforce(rules.check(undecoded.facts, facts_of_caller))
    film = undecoded.render(preparation)
    rules.enforce(rules.check(film.facts, facts_of_caller, film.stats))
    return encode(film)
