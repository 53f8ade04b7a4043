"""The conversation in the form that Gemma 3's chat template renders completely. No I/O.

The template shows only the first part of a system message, requires user and assistant to alternate, and places the
image where its part stands. Clients send other forms that mean the same, so they are converted: each message becomes
its text, and the film of a message comes before its text, as in the fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pedcxr_serve.gateway.request.image_splice import IMAGE_URL, NO_ADDRESS, refuse


@dataclass(slots=True)
class Turn:
    """One message after those of the same role were joined.

    Attributes:
        texts: in their order, joined by line breaks for the engine.
        has_film: whether the request's film belongs to it.
    """

    role: str
    texts: list[str] = field(default_factory=list)
    has_film: bool = False

    @property
    def text(self) -> str:
        """The text as the engine receives it."""
        return "\n".join(self.texts)

    def message(self, url: str, uuid: str | None) -> dict[str, Any]:
        """Return the message for the engine; ``url`` and ``uuid`` stand for the film."""
        if not self.has_film:
            return {"role": self.role, "content": self.text}
        film: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}, "uuid": uuid}
        return {"role": self.role, "content": [film, *([{"type": "text", "text": self.text}] if self.texts else [])]}


def turns(messages: list[dict[str, Any]], placeholder: str, *, has_film: bool) -> list[Turn]:
    """Return the turns of a validated list of messages: at most one of the system, then user and assistant by turns.

    ``placeholder`` is the URL of the film's part, if the request has a film.

    Raises:
        RequestRefused: a system message is not first, the assistant speaks first, a film is not in an ``image_url``
            part of the user, or a part has the wrong fields.
    """
    joined: list[Turn] = []
    for index, message in enumerate(messages):
        role = "system" if message["role"] == "developer" else message["role"]
        if role == "system" and joined and joined[-1].role != "system":
            refuse("a system message must come first", f"messages[{index}].role", "invalid_value")
        if role == "assistant" and not any(turn.role == "user" for turn in joined):
            refuse(
                "the first message after the system's must be the user's", f"messages[{index}].role", "invalid_value"
            )
        if not joined or joined[-1].role != role:
            joined.append(Turn(role))
        _add(joined[-1], message["content"], placeholder, f"messages[{index}].content")
    if joined[-1].role == "system":
        refuse("must contain a message of the user", "messages", "invalid_value")
    if sum(turn.has_film for turn in joined) != has_film:
        refuse("must be at most one image, as the `url` of an `image_url` part", "messages", "too_many_images")
    return joined


def _add(turn: Turn, content: str | list[dict[str, Any]], placeholder: str, path: str) -> None:
    if isinstance(content, str):
        turn.texts.append(_text(content, placeholder, path))
        return
    for index, part in enumerate(content):
        at, kind = f"{path}[{index}]", part.get("type", "image_url" if "image_url" in part else "text")
        if {*part} - {"type"} != {kind}:
            refuse(f"a part of type {kind} must have the field `{kind}` and no other", at, "invalid_value")
        if kind == "text":
            turn.texts.append(_text(part["text"], placeholder, f"{at}.text"))
            continue
        image_url = part["image_url"]
        if (image_url if isinstance(image_url, str) else image_url["url"]) != placeholder:
            refuse(NO_ADDRESS, IMAGE_URL, "invalid_image_url")
        if turn.role != "user":
            refuse("must contain no image; only a message of the user may contain one", path, "invalid_value")
        if turn.has_film:
            refuse("must be at most one image per request", "messages", "too_many_images")
        turn.has_film = True


def _text(text: str, placeholder: str, path: str) -> str:
    if placeholder in text:
        refuse("must not contain an image; send it as an `image_url` part", path, "invalid_value")
    return text
