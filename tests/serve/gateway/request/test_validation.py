"""Request validation: what is accepted, what is rewritten, what is refused, and the errors."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pedcxr_serve.gateway.auth.tenants import ANONYMOUS, Tenant
from pedcxr_serve.gateway.request import validation
from pedcxr_serve.gateway.request.image_splice import RequestRefused
from pedcxr_serve.gateway.request.validation import SCHEMA, AcceptedRequest, Rules

RULES = Rules("m", max_new_tokens=500, secret=b"s" * 32)
TEAM = Tenant("team")
SAMPLER = Tenant("sampler", may_sample=True)
READER = Tenant("reader", may_omit_film=True)
BENCH = Tenant("bench", may_bench=True)
FILM = base64.b64encode(b"\x89PNG\r\n\x1a\n, but no film~~~").decode()
URL = "data:image/png;base64," + FILM
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
DICOM = {"type": "image_url", "image_url": {"url": URL.replace("image/png", "application/dicom")}}


WORDS = {"type": "text", "text": "Generate a report."}


def body(*content: object, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content) or [IMAGE, WORDS]}], **more}


def film_at(url: str) -> dict[str, Any]:
    return body({"type": "image_url", "image_url": {"url": url}})


def accept(request: object, tenant: Tenant = TEAM, **options: Any) -> AcceptedRequest:
    raw = request if isinstance(request, bytes) else json.dumps(request, **options).encode()
    return validation.apply(raw, tenant, RULES)


def payload(accepted: AcceptedRequest) -> Any:
    return json.loads(b"".join(accepted.parts))


def with_film_id(request: dict[str, Any], salt: str) -> dict[str, Any]:
    """Return the request with the engine's name for the film in it."""
    copied = copy.deepcopy(request)
    copied["messages"][0]["content"][0]["uuid"] = validation.film_id(
        salt, hashlib.sha256(base64.b64decode(FILM)).digest()
    )
    return copied


def film_uuid(accepted: AcceptedRequest) -> str:
    return str(payload(accepted)["messages"][0]["content"][0]["uuid"])


def url_of(accepted: AcceptedRequest) -> str:
    return str(payload(accepted)["messages"][0]["content"][0]["image_url"]["url"])


def refusal(request: object, tenant: Tenant = TEAM) -> tuple[str, str | None]:
    with pytest.raises(RequestRefused) as caught:
        accept(request, tenant)
    assert len(str(caught.value)) < 800
    return caught.value.code, caught.value.param


def test_body_of_our_client() -> None:
    request_body = body(model="m", max_tokens=400, temperature=0, stream=True, stream_options={"include_usage": True})
    accepted = accept(request_body)
    salt = validation.cache_salt(b"s" * 32, "team")
    options = {"include_usage": True, "continuous_usage_stats": True}
    sent = with_film_id(request_body, salt) | {"cache_salt": salt, "stream_options": options}
    assert payload(accepted) == sent
    assert (accepted.stream, accepted.include_usage, accepted.include_counts) == (True, True, False)
    assert accepted.max_tokens == 400
    assert accepted.film == hashlib.sha256(base64.b64decode(FILM)).digest()
    assert accepted.words == "Generate a report."


@pytest.mark.parametrize("kind", ["image/png", "image/dicom", "application/dicom", "application/octet-stream"])
@pytest.mark.parametrize("slash", ["/", "\\/"])  # PHP writes the latter
def test_film_media_types_are_accepted(kind: str, slash: str) -> None:
    url = f"data:{kind};base64,{FILM}"
    request_body = body({"type": "image_url", "image_url": {"url": url}})
    accepted = accept(json.dumps(request_body).replace(kind, kind.replace("/", slash)).encode())
    assert accepted.film == hashlib.sha256(base64.b64decode(FILM)).digest()
    assert url_of(accepted) == URL, "the type is that of the bytes"


def test_film_is_not_copied() -> None:
    raw = json.dumps(body()).encode()
    accepted = validation.apply(raw, TEAM, RULES)
    views = [part for part in accepted.parts if isinstance(part, memoryview)]
    assert [view.obj for view in views] == [raw]


def test_defaults() -> None:
    assert payload(accept(body())) == {
        "messages": with_film_id(body(), validation.cache_salt(b"s" * 32, "team"))["messages"],
        "model": "m",
        "max_tokens": 500,
        "temperature": 0,
        "cache_salt": validation.cache_salt(b"s" * 32, "team"),
    }


@pytest.mark.parametrize(
    ("limits", "max_tokens"),
    [
        ({}, 500),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 9000}, 500),
        ({"max_completion_tokens": 9}, 9),
        ({"max_tokens": 20, "max_completion_tokens": 10}, 10),
        ({"max_tokens": None}, 500),
    ],
)
def test_max_tokens_is_capped(limits: dict[str, Any], max_tokens: int) -> None:
    out = payload(accept(body(**limits)))
    assert out["max_tokens"] == max_tokens
    assert "max_completion_tokens" not in out


def test_sampling_fields_require_permission() -> None:
    request_body = body(temperature=0.7, top_p=0.9, seed=3, frequency_penalty=1, presence_penalty=1)
    greedy, free = payload(accept(request_body)), payload(accept(request_body, SAMPLER))
    assert greedy["temperature"] == 0
    assert not {"top_p", "seed", "frequency_penalty", "presence_penalty"} & set(greedy)
    assert (free["temperature"], free["top_p"], free["seed"]) == (0.7, 0.9, 3)
    assert payload(accept(body(), SAMPLER))["temperature"] == 0


def test_cache_salt_is_stable_and_differs_by_tenant() -> None:
    one, two = payload(accept(body())), payload(accept(body(), SAMPLER))
    assert one["cache_salt"] != two["cache_salt"]
    assert one == payload(accept(body()))


@pytest.mark.parametrize(
    "request_body",
    [
        body(n=1, user="u", stop=["a"], logprobs=True, top_logprobs=2, response_format={"type": "text"}),
        body(return_token_ids=True, tools=None, logit_bias=None),
        body(stream=True, stream_options={"include_usage": False, "include_obfuscation": False}),
    ],
)
def test_bodies_of_common_sdks_are_accepted(request_body: dict[str, Any]) -> None:
    accepted = accept(request_body)
    expected = with_film_id(request_body, validation.cache_salt(b"s" * 32, "team"))
    assert payload(accepted)["messages"] == expected["messages"]


def test_request_without_a_film_is_refused() -> None:
    """The model would invent a report."""
    words = body({"type": "text", "text": "Generate a report of this chest X-ray."})
    assert refusal(words) == ("film_missing", "messages")
    assert refusal(words | {"max_tokens": 17}) == ("film_missing", "messages")
    assert accept(words, READER).film is None
    for limit in ({"max_tokens": 16}, {"max_completion_tokens": 1}, {"max_tokens": 500, "max_completion_tokens": 5}):
        assert accept(words | limit).film is None, "clients test a connection with a few tokens"


def test_film_of_an_earlier_turn_counts() -> None:
    later = [{"role": "assistant", "content": "FINDINGS: clear."}, {"role": "user", "content": "Which side?"}]
    request_body = body() | {"messages": body()["messages"] + later}
    assert payload(accept(request_body))["messages"][1:] == later


def test_fields_for_load_tests_require_permission() -> None:
    request_body = body(ignore_eos=True, min_tokens=9)
    plain, bench = accept(request_body), accept(request_body, BENCH)
    assert not {"ignore_eos", "min_tokens"} & set(payload(plain)) and plain.ignored == ("ignore_eos", "min_tokens")
    assert payload(bench)["ignore_eos"] is True and payload(bench)["min_tokens"] == 9 and bench.ignored == ()


def test_film_id_depends_on_bytes_tenant_and_server() -> None:
    """Equal for equal bytes, whatever surrounds them; different for another film, tenant or server."""
    one = film_uuid(accept(body()))
    assert len(one) == 64
    url = "data:image/jpeg;base64," + FILM
    assert film_uuid(accept(body({"type": "image_url", "image_url": {"url": url, "detail": "low"}}))) == one
    other_film = "data:image/png;base64," + FILM[:-4] + "AAAA"
    others = {
        film_uuid(accept(body(), SAMPLER)),
        film_uuid(accept(body({"type": "image_url", "image_url": {"url": other_film}}))),
        film_uuid(validation.apply(json.dumps(body()).encode(), TEAM, Rules("m", 500))),
        film_uuid(validation.apply(json.dumps(body()).encode(), TEAM, Rules("m", 500))),
    }
    assert len(others - {one}) == 4


@pytest.mark.parametrize("escaped", [lambda url: url.replace("/", "\\/"), lambda url: url.replace("=", "\\u003d")])
def test_escapes_of_php_and_java_in_the_url_are_accepted(escaped: Any) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8\xff\xe0\xff\xff\xfc").decode()
    assert "/" in url[23:] and url.endswith("=")
    raw = json.dumps(body({"type": "image_url", "image_url": {"url": url}}), separators=(",", ":"))
    changed = raw.replace(url, escaped(url))
    assert payload(accept(changed.encode()))["messages"][0]["content"][0]["image_url"]["url"] == url


@pytest.mark.parametrize(
    ("request_body", "code", "param"),
    [
        (body(n=2), "invalid_value", "n"),
        (body(n=True), "invalid_type", "n"),
        (body(stream=1), "invalid_type", "stream"),
        (body(max_tokens=0), "invalid_value", "max_tokens"),
        (body(max_tokens=1.5), "invalid_type", "max_tokens"),
        (body(temperature=3), "invalid_value", "temperature"),
        (body(temperature="0"), "invalid_type", "temperature"),
        (body(stop=["a", 3]), "invalid_value", "stop"),
        (body(stop=["a"] * 5), "invalid_value", "stop"),
        (body(return_token_ids="yes"), "invalid_type", "return_token_ids"),
        (body(top_logprobs=3), "invalid_value", "top_logprobs"),
        (body(response_format={"type": "json_object"}), "invalid_value", "response_format.type"),
        (body(stream_options={"include_usage": True}), "invalid_value", "stream_options"),
        (body(stream=True, stream_options={"chunk_size": 1}), "unknown_field", "stream_options.chunk_size"),
        (body(tools=[{"type": "function"}]), "unknown_field", "tools"),
        (body(tool_choice="required"), "unknown_field", "tool_choice"),
        (body(modalities=["text", "audio"]), "unknown_field", "modalities"),
        (body(ignore_eos=1), "invalid_type", "ignore_eos"),
        (body(min_tokens=-1), "invalid_value", "min_tokens"),
        (body(top_k=5), "unknown_field", "top_k"),
        (body(echo=True), "unknown_field", "echo"),
        (body(response_format={"type": "json_schema", "json_schema": {}}), "invalid_value", "response_format.type"),
        *((body(**{name: 1}), "unknown_field", name) for name in (
            "uuid", "mm_processor_kwargs", "media_io_kwargs", "chat_template", "chat_template_kwargs", "vllm_xargs",
            "priority", "cache_salt", "logit_bias", "prompt_logprobs", "tools",
            "use_beam_search", "structured_outputs", "kv_transfer_params", "request_id", "add_generation_prompt",
            "truncate_prompt_tokens", "echo", "bad_words", "data_parallel_rank",
        )),
        (body({**IMAGE, "uuid": "x"}), "unknown_field", "messages[0].content[0].uuid"),
        (body({"type": "image_url", "image_url": {"url": URL, "uuid": "x"}}), "unknown_field", None),
        (body(IMAGE, IMAGE), "too_many_images", "messages"),
        (body(IMAGE, DICOM), "too_many_images", "messages"),
        (body(DICOM, IMAGE), "too_many_images", "messages"),
        (body(DICOM, DICOM), "too_many_images", "messages"),
        (body({"type": "text", "text": DICOM["image_url"]["url"]}), "invalid_value", None),
        (film_at("data:application/pdf;base64,AAAA"), "invalid_image_url", None),
        (film_at("data:application/dicom,AAAA"), "invalid_image_url", None),
        (film_at("data:application/dicom;base64,"), "invalid_base64", None),
        (body({"type": "image_url", "image_url": {"url": "https://x/y.png"}}), "invalid_image_url", None),
        (body({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "invalid_image_url", None),
        (body({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}), "invalid_base64", None),
        (film_at("data:image/png;base64,a!b="), "invalid_base64", None),
        (film_at("data:image/png;base64,AAAAA"), "invalid_base64", None),
        (film_at("data:text/plain;base64,AAAA"), "invalid_image_url", None),
        (body({"type": "image_url", "image_url": {"url": "data:image/png,abcd"}}), "invalid_image_url", None),
        (body({"type": "image_url", "image_url": "https://x/y.png"}), "invalid_image_url", None),
        (body({"type": "image_url"}), "invalid_value", None),
        (body({"type": "text", "text": URL}), "invalid_value", None),
        (body({"type": "text", "text": "a", "image_url": {"url": URL}}), "invalid_value", None),
        (body({"type": "video_url", "video_url": {"url": URL}}), "invalid_value", None),
        (body("text"), "invalid_type", "messages[0].content[0]"),
        (body({"type": "text", "text": 3}), "invalid_type", "messages[0].content[0].text"),
        (body(IMAGE, {"type": "text", "text": "x", "txet": "x"}), "unknown_field", "messages[0].content[1].txet"),
        (body(IMAGE, {}), "invalid_value", "messages[0].content[1]"),
        ({"messages": [{"role": "user", "content": ["x"] * 17}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": [IMAGE]}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "system", "content": [IMAGE]}, *body()["messages"]]}, "too_many_images", None),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "invalid_value", "messages[0].content"),
        ({"messages": [*body()["messages"], {"role": "system", "content": "x"}]}, "invalid_value", "messages[1].role"),
        ({"messages": [{"role": "system", "content": "x"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "system", "content": "x" * 9000}, *body()["messages"]]}, "too_long", "messages"),
        (body({"type": "text", "text": "x" * 40_000}), "too_long", "messages"),
        (body({"type": "text", "text": "x" * 400_000}), "too_long", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "missing_field", "messages[0].content"),
        ({}, "missing_field", "messages"),
        ([], "invalid_type", None),
        (body(**{"": 1}), "unknown_field", ""),
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"\xff\xfe{", "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"a":' * 30_000, "invalid_json", None),
        (b'{"temperature": NaN, "messages": []}', "invalid_json", None),
        (b'{"temperature": -Infinity}', "invalid_json", None),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "invalid_value", "temperature"),
        (b'{"messages": 1, "messages": 2}', "duplicate_field", None),
        (b'{"messages": [{"role": "user", "role": "user", "content": "x"}]}', "duplicate_field", None),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}', "invalid_text", "messages"),
        (b'{"a": "data:image/png;base64,AAAA', "invalid_json", None),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json", None),
    ],
)  # fmt: skip
def test_refusals_have_code_and_param(request_body: object, code: str, param: str | None) -> None:
    actual_code, actual_param = refusal(request_body)
    assert actual_code == code
    assert param is None or actual_param == param


def test_refusals_repeat_no_value_of_the_request() -> None:
    for request_body in (
        body(temperature="Jane Doe"),
        body(stop=["Jane Doe" * 20]),
        body(response_format={"type": "Jane Doe"}),
        body({"type": "Jane Doe", "text": "x"}),
        {"messages": "Jane Doe"},
    ):
        with pytest.raises(RequestRefused) as caught:
            accept(request_body)
        assert "Jane" not in str(caught.value)


def test_permissions_of_the_tenant() -> None:
    assert refusal(body(stream=True), Tenant("t", may_stream=False)) == ("stream_not_allowed", "stream")
    assert refusal(body(model="other"), Tenant("t", models=("m",))) == ("model_not_found", "model")
    other = Tenant("t", models=("other",))
    assert refusal(body(model="other"), other) == ("model_not_found", "model"), "the engine has no such model"
    serving = dataclasses.replace(RULES, served=frozenset({"m", "other"}))
    assert validation.apply(json.dumps(body(model="other")).encode(), other, serving).model == "other"


@pytest.mark.parametrize("model", ["other", "Jane Doe", "M", "m ", "/models/m"])
def test_unknown_models_are_refused_by_the_gateway(model: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        accept(body(model=model))
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert model not in str(caught.value).split()


def test_text_cannot_contain_the_placeholder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that contains the placeholder would be replaced by the film."""
    monkeypatch.setattr(validation.image_splice, "placeholder", lambda: "data:image/known")
    for spelling in ("\\u0064ata:image/known", "see data:image/known"):
        with pytest.raises(RequestRefused, match="must not contain an image"):
            accept(json.dumps(body()).replace("Generate a report.", spelling).encode())


def test_placeholder_learnt_from_an_error_is_useless() -> None:
    """The client sends a film as a field's name, which the error repeats, then sends that placeholder as the image."""
    with pytest.raises(RequestRefused) as caught:
        accept({URL: 1, "messages": []})
    placeholder = caught.value.param
    assert placeholder is not None and placeholder.startswith("data:image/") and placeholder != URL
    request_body = body({"type": "text", "text": f'"{URL}'}, {"type": "image_url", "image_url": {"url": placeholder}})
    raw = json.dumps(request_body).replace(f'"{placeholder}"', f'"\\u0064{placeholder[1:]}"')
    assert refusal(raw.encode())[0] == "invalid_value"


def test_repr_contains_no_secret() -> None:
    assert "ssss" not in repr(RULES)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(URL),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from([field.name for field in SCHEMA.walk()]) | st.text(max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_NAMES, _JSON, max_size=5), st.booleans())
def test_any_json_is_rewritten_or_refused(more: dict[str, Any], with_film: bool) -> None:
    request_body = (body() if with_film else body({"type": "text", "text": "a"}, max_tokens=9)) | more
    try:
        out = payload(accept(request_body))
    except RequestRefused:
        return
    assert set(out) <= set(SCHEMA.fields) | {"cache_salt"}
    assert out["temperature"] == 0 and out["max_tokens"] <= 500


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 20))
def test_any_bytes_are_accepted_or_refused(noise: bytes, at: int, cut: int) -> None:
    raw = json.dumps(body(stream=True)).encode()
    try:
        accepted = accept(raw[:at] + noise + raw[at + cut :])
    except RequestRefused:
        return
    assert payload(accepted)["cache_salt"]


@pytest.mark.parametrize(("usage", "counts"), [(True, True), (True, False), (False, True), (False, False)])
def test_counts_in_every_event_need_the_usage_too(usage: bool, counts: bool) -> None:
    options = {"include_usage": usage, "continuous_usage_stats": counts}
    accepted = accept(body(stream=True, stream_options=options))
    assert (accepted.include_usage, accepted.include_counts) == (usage, usage and counts)
    assert payload(accepted)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert not accepted.ignored


def test_reference_contains_every_field() -> None:
    page = SCHEMA.markdown("field")
    assert page.count("\n") == len(list(SCHEMA.walk())) + 2 == 32
    assert "`messages[].content[].image_url.url`" in page


def test_anonymous_has_a_cache_salt_too() -> None:
    assert payload(accept(body(), ANONYMOUS))["cache_salt"] == validation.cache_salt(b"s" * 32, "anonymous")


def test_large_film_is_accepted() -> None:
    """`make bench-gateway` prints how long this takes."""
    large = URL[:22] + base64.b64encode(os.urandom(2_250_000)).decode()
    raw = json.dumps(body({"type": "image_url", "image_url": {"url": large}})).encode()
    assert sum(map(len, validation.apply(bytearray(raw), TEAM, RULES).parts)) >= len(large)
