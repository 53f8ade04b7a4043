"""The fields of a chat completion that are served: one table, from which come the checks and the documentation."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FIELDS", "Field", "by_parent", "reference"]

MESSAGE, PART, IMAGE = "messages[]", "messages[].content[]", "messages[].content[].image_url"


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    Attributes:
        parent: path of the object that holds it; empty for the body itself.
        kinds: what it may be, any of ``text integer number boolean object list``.
        low, high: range of a number, length of a text or list.
        choices: all values of a text, if they can be listed.
        sampling: only honoured for a tenant that may sample, dropped for others.
    """

    parent: str
    name: str
    kinds: tuple[str, ...]
    doc: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    required: bool = False
    sampling: bool = False

    @property
    def path(self) -> str:
        """As written in an error's ``param``, without indices."""
        return f"{self.parent}.{self.name}" if self.parent else self.name

    def allowed(self) -> str:
        """What a value may be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = []
        for kind in self.kinds:
            span = f"{self.low:,.10g} to {self.high:,.10g}"
            span = f"{self.low:g}" if self.low == self.high else span
            if kind in ("integer", "number"):
                words.append(f"{kind} {span}")
            elif kind == "text" and math.isfinite(self.high):
                words.append(f"text of {span} characters")
            elif kind == "list" and math.isfinite(self.high):
                words.append(f"list of {span}")
            else:
                words.append(kind)
        return " or ".join(words)


FIELDS: tuple[Field, ...] = (
    Field("", "model", ("text",), "a name of `GET /v1/models`; absent: the server's own", 1, 128),
    Field("", "messages", ("list",), "the conversation", 1, 16, required=True),
    Field("", "max_tokens", ("integer",), "longest answer; more than the server's cap is lowered to it", 1, 1e6),
    Field("", "max_completion_tokens", ("integer",), "the same, newer name; the smaller of the two counts", 1, 1e6),
    Field("", "stream", ("boolean",), "answer as server-sent events; for tenants that may stream"),
    Field("", "stream_options", ("object",), "only with `stream`"),
    Field(
        "stream_options",
        "include_usage",
        ("boolean",),
        "whether an event at the end of a stream counts tokens",
    ),
    Field("stream_options", "include_obfuscation", ("boolean",), "taken, without effect"),
    Field("", "n", ("integer",), "one answer a request", 1, 1),
    Field("", "stop", ("text", "list"), "what ends the answer; at most 4 texts", 1, 64),
    Field("", "logprobs", ("boolean",), "log probabilities of the tokens"),
    Field("", "top_logprobs", ("integer",), "how many beside each token; only with `logprobs`", 0, 5),
    Field("", "return_token_ids", ("boolean",), "the tokens' numbers beside the text (vLLM)"),
    Field("", "response_format", ("object",), "only `text`"),
    Field("response_format", "type", ("text",), "", choices=("text",), required=True),
    Field("", "user", ("text",), "taken and dropped: nothing that names a person reaches the engine", 0, 256),
    Field("", "temperature", ("number",), "0, the default, is greedy", 0, 2, sampling=True),
    Field("", "top_p", ("number",), "", 0.01, 1, sampling=True),
    Field("", "seed", ("integer",), "", -(2**63), 2**63 - 1, sampling=True),
    Field("", "frequency_penalty", ("number",), "", -2, 2, sampling=True),
    Field("", "presence_penalty", ("number",), "", -2, 2, sampling=True),
    Field(MESSAGE, "role", ("text",), "", choices=("system", "user", "assistant"), required=True),
    Field(MESSAGE, "content", ("text", "list"), "text, or a list of at most 16 parts", required=True),
    Field(PART, "type", ("text",), "", choices=("text", "image_url"), required=True),
    Field(PART, "text", ("text",), "of a part of type `text`"),
    Field(PART, "image_url", ("object",), "of a part of type `image_url`; one image a request, from the user"),
    Field(
        IMAGE,
        "url",
        ("text",),
        "`data:image/TYPE;base64,...` or `data:application/dicom;base64,...`; never an address",
        required=True,
    ),
    Field(IMAGE, "detail", ("text",), "no effect on this model", choices=("auto", "low", "high")),
)


def by_parent() -> dict[str, dict[str, Field]]:
    """The table, by the path of the object and the field's name."""
    found: dict[str, dict[str, Field]] = {}
    for field in FIELDS:
        found.setdefault(field.parent, {})[field.name] = field
    return found


def reference() -> str:
    """The table in Markdown, as docs/tenants.md shows it."""
    lines = ["| field | allowed | meaning |", "|---|---|---|"]
    for field in FIELDS:
        notes = [field.doc] if field.doc else []
        notes += ["required"] if field.required else []
        notes += ["dropped unless the tenant may sample"] if field.sampling else []
        lines.append(f"| `{field.path}` | {field.allowed()} | {'; '.join(notes)} |")
    return "\n".join(lines) + "\n"
