"""The forms in which clients write one conversation, and the one form that the engine receives."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import textwrap
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request import validation
from pedcxr_serve.gateway.request.image_splice import RequestRefused
from pedcxr_serve.gateway.request.validation import AcceptedRequest, Rules

EXAMPLES = int(os.environ.get("EXAMPLES", "300"))
"""Number of generated conversations; `make fuzz` sets 5,000."""

TEAM, RULES = Tenant("team"), Rules("m", max_new_tokens=500, secret=b"s" * 32)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(250, 256)) * 20 + b"\xfb"
BASE64 = base64.b64encode(PNG).decode()
URL = "data:image/png;base64," + BASE64
IMAGE = {"type": "image_url", "image_url": {"url": URL}}


def accept(request: object) -> AcceptedRequest:
    return validation.apply(json.dumps(request).encode(), TEAM, RULES)


def messages(accepted: AcceptedRequest) -> Any:
    """Return the engine's messages without the films' names."""
    found = json.loads(b"".join(accepted.parts))["messages"]
    for message in found:
        for part in message["content"] if isinstance(message["content"], list) else ():
            part.pop("uuid", None)
    return found


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*content: object) -> dict[str, object]:
    return {"role": "user", "content": [*content]}


def system(content: object, role: str = "system") -> dict[str, object]:
    return {"role": role, "content": content}


def assistant(words: str, **more: object) -> dict[str, object]:
    return {"role": "assistant", "content": words, **more}


FILM_FIRST = [user(IMAGE, text("a"))]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ([user(text("a"), IMAGE)], FILM_FIRST),
        ([user(IMAGE, text("a"), text("b"))], [user(IMAGE, text("a\nb"))]),
        ([user(text("a"), IMAGE, text("b"))], [user(IMAGE, text("a\nb"))]),
        ([user(IMAGE)], [user(IMAGE)]),
        ([user({"text": "a"}, {"image_url": {"url": URL}})], FILM_FIRST),
        ([user(text("a"), {"type": "image_url", "image_url": URL})], FILM_FIRST),
        ([user(IMAGE), {"role": "user", "content": "a"}], FILM_FIRST),
        ([{"role": "user", "content": "a"}, user(IMAGE)], FILM_FIRST),
        ([system("s"), user(IMAGE, text("a"))], [system("s"), *FILM_FIRST]),
        ([system("s", "developer"), user(IMAGE, text("a"))], [system("s"), *FILM_FIRST]),
        ([system([text("s"), text("t")]), user(IMAGE, text("a"))], [system("s\nt"), *FILM_FIRST]),
        ([system("s"), system("t", "developer"), user(IMAGE, text("a"))], [system("s\nt"), *FILM_FIRST]),
        (
            [user(IMAGE, text("a")), assistant("b"), assistant("c"), {"role": "user", "content": "d"}],
            [*FILM_FIRST, assistant("b\nc"), {"role": "user", "content": "d"}],
        ),
        (
            [{"role": "user", "content": "a"}, assistant("b"), user(text("c"), IMAGE)],
            [{"role": "user", "content": "a"}, assistant("b"), user(IMAGE, text("c"))],
        ),
    ],
)  # fmt: skip
def test_equivalent_conversations_reach_the_engine_in_one_form(written: list[Any], sent: list[Any]) -> None:
    accepted = accept({"messages": written})
    assert messages(accepted) == sent
    words = [part["text"] for message in sent for part in _parts(message) if part["type"] == "text"]
    assert accepted.words == "\n".join(words), "the audit log's digest covers what the model sees"


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [text(content)] if isinstance(content, str) else content


DATA_URLS = {
    "no type": f"data:;base64,{BASE64}",
    "type without subtype": f"data:image;base64,{BASE64}",
    "any image": f"data:image/*;base64,{BASE64}",
    "upper-case subtype": f"data:image/PNG;base64,{BASE64}",
    "upper-case scheme": f"DATA:image/png;BASE64,{BASE64}",
    "wrong type": f"data:image/jpeg;base64,{BASE64}",
    "type of S3": f"data:binary/octet-stream;base64,{BASE64}",
    "charset": f"data:image/png;charset=utf-8;base64,{BASE64}",
    "file name": f"data:image/png;name=film.png;base64,{BASE64}",
    "blanks around": f"  {URL}\n",
    "blank after the comma": f"data:image/png;base64, {BASE64}",
    "lines of 76": "data:image/png;base64," + "\r\n".join(textwrap.wrap(BASE64, 76)),
    "URL-safe": "data:image/png;base64," + BASE64.translate(str.maketrans("+/", "-_")),
    "no padding": URL.rstrip("="),
    "URL-safe without padding": "data:image/png;base64," + BASE64.translate(str.maketrans("+/", "-_")).rstrip("="),
    "percent-encoded": "data:image/png;base64," + quote(BASE64, safe=""),
}


@pytest.mark.parametrize("form", DATA_URLS)
@pytest.mark.parametrize("slash", ["/", "\\/"])  # PHP writes the latter
def test_every_form_of_data_url_gives_the_same_bytes(form: str, slash: str) -> None:
    raw = json.dumps({"messages": [user({"type": "image_url", "image_url": {"url": DATA_URLS[form]}})]})
    accepted = validation.apply(raw.replace("/", slash).encode(), TEAM, RULES)
    assert messages(accepted)[0]["content"][0]["image_url"]["url"] == URL
    assert accepted.film == hashlib.sha256(PNG).digest()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": BASE64 * 3000}}, "only as the base64 data: URL"),
        ({"type": "image_url", "image_url": {"url": BASE64}}, "send the film as data:image/png;base64"),
        ({"type": "image", "source": {"type": "base64", "data": BASE64}}, "messages"),
        ({"type": "input_image", "image_url": URL}, "messages"),
    ],
)
def test_refused_forms_of_an_image_say_what_to_send(part: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestRefused, match=words):
        accept({"messages": [user(part)]})


def test_fields_that_cannot_change_a_report_are_ignored_and_named() -> None:
    image = {"type": "image_url", "image_url": {"url": URL, "detail": "original", "format": "image/png"}}
    echo = assistant("b", annotations=[], tool_calls=[], refusal=None, reasoning_content="", audio=None)
    request = {
        "messages": [
            {**user({**text("a"), "cache_control": {"type": "ephemeral"}}, image), "name": "jane"},
            echo,
            {"role": "user", "content": "c"},
        ],
        "metadata": {"a": "b"},
        "store": False,
        "user": "u" * 300,
        "tools": [],
        "tool_choice": "none",
        "logit_bias": {},
        "stop": [],
        "top_logprobs": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "temperature": 0.7,
    }
    accepted = accept(request)
    assert messages(accepted) == [user(IMAGE, text("a")), assistant("b"), {"role": "user", "content": "c"}]
    assert set(accepted.ignored) == {
        "metadata", "store", "user", "tools", "tool_choice", "logit_bias", "stop", "top_logprobs",
        "messages[].name", "messages[].content[].cache_control",
        "messages[].content[].image_url.format", "messages[].annotations", "messages[].tool_calls",
        "messages[].reasoning_content", "temperature",
    }  # fmt: skip
    assert len(set(accepted.ignored)) == len(accepted.ignored)
    sent = json.loads(b"".join(accepted.parts))
    assert set(sent) == {"messages", "model", "max_tokens", "temperature", "stream", "stream_options", "cache_salt"}


def test_defaults_of_routers_are_ignored() -> None:
    """The body of SGLang's router and of vllm-router, which is derived from it."""
    router = {
        "no_stop_trim": False, "ignore_eos": False, "continue_final_message": False, "skip_special_tokens": True,
        "separate_reasoning": True, "stream_reasoning": True, "return_hidden_states": False, "include_reasoning": True,
        "logprobs": False,
    }  # fmt: skip
    assert messages(accept({"messages": FILM_FIRST, **router})) == FILM_FIRST
    for name in router.keys() - {"ignore_eos", "logprobs"}:
        with pytest.raises(RequestRefused) as caught:
            accept({"messages": FILM_FIRST, name: not router[name]})
        assert caught.value.param == name, "another value could change the report"


_LINE_BREAKS = st.sampled_from(["", "\n", "\r\n", " "])


@st.composite
def _requests(draw: st.DrawFn) -> tuple[dict[str, Any], bytes, list[str]]:
    """Return a request in one of the forms of clients, its film, and its texts in their order."""
    film = draw(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"])) + draw(
        st.binary(min_size=1, max_size=60)
    )
    encode = draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]))
    encoded = encode(film).decode()
    encoded = encoded.rstrip("=") if draw(st.booleans()) else encoded
    width = draw(st.integers(1, 80))
    encoded = draw(_LINE_BREAKS).join(textwrap.wrap(encoded, width))
    header = draw(
        st.sampled_from(
            ["data:;base64,", "DATA:image/PNG;base64,", "data:image/jpeg;x=y;base64,", " data:image;base64,"]
        )
    )
    image: dict[str, Any] = {"image_url": draw(st.sampled_from([header + encoded, {"url": header + encoded}]))}
    if draw(st.booleans()):
        image["type"] = "image_url"
    words = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=3))
    parts: list[dict[str, Any]] = [{"text": each} if draw(st.booleans()) else text(each) for each in words]
    parts.insert(draw(st.integers(0, len(parts))), image)
    cut = draw(st.integers(0, len(parts)))
    turns = [user(*part) for part in (parts[:cut], parts[cut:]) if part]
    return {"messages": turns, "metadata": {}, "store": draw(st.booleans())}, film, words


@settings(max_examples=EXAMPLES, deadline=None)
@given(_requests(), st.booleans())
def test_generated_forms_keep_the_film_and_the_texts(
    case: tuple[dict[str, Any], bytes, list[str]], ascii_only: bool
) -> None:
    request, film, words = case
    accepted = validation.apply(json.dumps(request, ensure_ascii=ascii_only).encode(), TEAM, RULES)
    [message] = messages(accepted)
    url = message["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.partition(",")[2], validate=True) == film
    assert [part["text"] for part in message["content"][1:]] == (["\n".join(words)] if words else [])
