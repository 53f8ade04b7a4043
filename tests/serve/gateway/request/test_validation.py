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
from pedcxr_serve.gateway.request.validation import SCHEMA, AcceptedRequest, RequestRefused, Rules

RULES = Rules("m", max_new_tokens=500, secret=b"s" * 32)
TEAM = Tenant("team")
SAMPLER = Tenant("sampler", may_sample=True)
FILM = base64.b64encode(b"\x89PNG not a film at all").decode()
URL = "data:image/png;base64," + FILM
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
DICOM = {"type": "image_url", "image_url": {"url": URL.replace("image/png", "application/dicom")}}


def body(*content: object, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content) or "words"}], **more}


def film_at(url: str) -> dict[str, Any]:
    return body({"type": "image_url", "image_url": {"url": url}})


def film(**more: object) -> dict[str, Any]:
    return body(IMAGE, {"type": "text", "text": "Generate a report."}, **more)


def accept(asked: object, tenant: Tenant = TEAM, **how: Any) -> AcceptedRequest:
    raw = asked if isinstance(asked, bytes) else json.dumps(asked, **how).encode()
    return validation.apply(raw, tenant, RULES)


def sent(accepted: AcceptedRequest) -> Any:
    return json.loads(b"".join(accepted.parts))


def as_marked(asked: dict[str, Any], salt: str) -> dict[str, Any]:
    """The request with the engine's name for the film in it."""
    marked = copy.deepcopy(asked)
    marked["messages"][0]["content"][0]["uuid"] = validation.film_id(
        salt, hashlib.sha256(base64.b64decode(FILM)).digest()
    )
    return marked


def uuid_of(accepted: AcceptedRequest) -> str:
    return str(sent(accepted)["messages"][0]["content"][0]["uuid"])


def refused(asked: object, tenant: Tenant = TEAM) -> tuple[str, str | None]:
    with pytest.raises(RequestRefused) as caught:
        accept(asked, tenant)
    assert len(str(caught.value)) < 800
    return caught.value.code, caught.value.param


def test_the_client_s_own_body() -> None:
    asked = film(model="m", max_tokens=400, temperature=0, stream=True, stream_options={"include_usage": True})
    accepted = accept(asked)
    salt = validation.cache_salt(b"s" * 32, "team")
    assert sent(accepted) == as_marked(asked, salt) | {"cache_salt": salt}
    assert (accepted.stream, accepted.include_usage, accepted.max_tokens) == (True, True, 400)
    assert accepted.film == hashlib.sha256(base64.b64decode(FILM)).digest()
    assert accepted.words == "Generate a report."


@pytest.mark.parametrize("kind", ["image/png", "image/dicom", "application/dicom", "application/octet-stream"])
@pytest.mark.parametrize("slash", ["/", "\\/"])  # PHP writes the latter
def test_a_film_may_go_by_these_names(kind: str, slash: str) -> None:
    url = f"data:{kind};base64,{FILM}"
    asked = body({"type": "image_url", "image_url": {"url": url}})
    accepted = accept(json.dumps(asked).replace(kind, kind.replace("/", slash)).encode())
    assert accepted.film == hashlib.sha256(base64.b64decode(FILM)).digest()
    assert sent(accepted)["messages"][0]["content"][0]["image_url"]["url"] == url


def test_the_film_is_not_copied() -> None:
    raw = json.dumps(film()).encode()
    accepted = validation.apply(raw, TEAM, RULES)
    views = [part for part in accepted.parts if isinstance(part, memoryview)]
    assert [view.obj for view in views] == [raw]
    assert len(b"".join(accepted.parts)) == accepted.size


def test_defaults() -> None:
    assert sent(accept(body())) == {
        "messages": [{"role": "user", "content": "words"}],
        "model": "m",
        "max_tokens": 500,
        "temperature": 0,
        "cache_salt": validation.cache_salt(b"s" * 32, "team"),
    }


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ({}, 500),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 9000}, 500),
        ({"max_completion_tokens": 9}, 9),
        ({"max_tokens": 20, "max_completion_tokens": 10}, 10),
        ({"max_tokens": None}, 500),
    ],
)
def test_max_tokens_is_capped(asked: dict[str, Any], granted: int) -> None:
    out = sent(accept(body(**asked)))
    assert out["max_tokens"] == granted
    assert "max_completion_tokens" not in out


def test_only_a_tenant_that_may_sample_samples() -> None:
    asked = body(temperature=0.7, top_p=0.9, seed=3, frequency_penalty=1, presence_penalty=1)
    greedy, free = sent(accept(asked)), sent(accept(asked, SAMPLER))
    assert greedy["temperature"] == 0
    assert not {"top_p", "seed", "frequency_penalty", "presence_penalty"} & set(greedy)
    assert (free["temperature"], free["top_p"], free["seed"]) == (0.7, 0.9, 3)
    assert sent(accept(body(), SAMPLER))["temperature"] == 0


def test_salts_differ_by_tenant_and_are_stable() -> None:
    one, two = sent(accept(body())), sent(accept(body(), SAMPLER))
    assert one["cache_salt"] != two["cache_salt"]
    assert one == sent(accept(body()))


@pytest.mark.parametrize(
    "asked",
    [
        body(n=1, user="u", stop=["a"], logprobs=True, top_logprobs=2, response_format={"type": "text"}),
        body(return_token_ids=True, tools=None, logit_bias=None),
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
        body({"type": "text", "text": "x"}),
        body(stream=True, stream_options={"include_usage": False, "include_obfuscation": False}),
    ],
)
def test_bodies_of_common_sdks_pass(asked: dict[str, Any]) -> None:
    assert sent(accept(asked))["messages"] == asked["messages"]


def test_a_film_s_name_is_the_tenant_s_own() -> None:
    """The same for the same bytes, however they are wrapped; another for another film, tenant or server."""
    one = uuid_of(accept(film()))
    assert len(one) == 64
    url = "data:image/jpeg;base64," + FILM
    assert uuid_of(accept(body({"type": "image_url", "image_url": {"url": url, "detail": "low"}}))) == one
    other_film = "data:image/png;base64," + FILM[:-4] + "AAAA"
    others = {
        uuid_of(accept(film(), SAMPLER)),
        uuid_of(accept(body({"type": "image_url", "image_url": {"url": other_film}}))),
        uuid_of(validation.apply(json.dumps(film()).encode(), TEAM, Rules("m", 500))),
        uuid_of(validation.apply(json.dumps(film()).encode(), TEAM, Rules("m", 500))),
    }
    assert len(others - {one}) == 4


@pytest.mark.parametrize("escaped", [lambda url: url.replace("/", "\\/"), lambda url: url.replace("=", "\\u003d")])
def test_escapes_of_php_and_java_in_the_url_pass(escaped: Any) -> None:
    url = "data:image/png;base64," + base64.b64encode(b"\xff\xfe\xfd\xfc").decode()
    raw = json.dumps(body({"type": "image_url", "image_url": {"url": url}}), separators=(",", ":"))
    changed = raw.replace(url, escaped(url))
    assert sent(accept(changed.encode()))["messages"][0]["content"][0]["image_url"]["url"] == url


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        (body(n=2), "invalid_value", "n"),
        (body(n=True), "invalid_type", "n"),
        (body(stream=1), "invalid_type", "stream"),
        (body(max_tokens=0), "invalid_value", "max_tokens"),
        (body(max_tokens=1.5), "invalid_type", "max_tokens"),
        (body(temperature=3), "invalid_value", "temperature"),
        (body(temperature="0"), "invalid_type", "temperature"),
        (body(stop=[]), "invalid_value", "stop"),
        (body(stop=["a", 3]), "invalid_value", "stop"),
        (body(stop=["a"] * 5), "invalid_value", "stop"),
        (body(return_token_ids="yes"), "invalid_type", "return_token_ids"),
        (body(top_logprobs=3), "invalid_value", "top_logprobs"),
        (body(response_format={"type": "json_object"}), "invalid_value", "response_format.type"),
        (body(stream_options={"include_usage": True}), "invalid_value", "stream_options"),
        (body(stream=True, stream_options={"continuous_usage_stats": True}), "unknown_field", None),
        *((body(**{name: 1}), "unknown_field", name) for name in (
            "uuid", "mm_processor_kwargs", "media_io_kwargs", "chat_template", "chat_template_kwargs", "vllm_xargs",
            "priority", "cache_salt", "logit_bias", "ignore_eos", "prompt_logprobs", "tools", "best_of",
            "use_beam_search", "structured_outputs", "kv_transfer_params", "request_id", "add_generation_prompt",
            "truncate_prompt_tokens", "min_tokens", "echo", "bad_words", "data_parallel_rank",
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
        (body({"type": "image_url", "image_url": {"url": "data:image/png;base64,a b="}}), "invalid_base64", None),
        (body({"type": "image_url", "image_url": {"url": "data:image/png,abcd"}}), "invalid_image_url", None),
        (body({"type": "image_url", "image_url": URL}), "invalid_type", None),
        (body({"type": "text", "text": URL}), "invalid_value", None),
        (body({"type": "text", "text": "a", "image_url": {"url": URL}}), "invalid_value", None),
        (body({"type": "video_url", "video_url": {"url": URL}}), "invalid_value", None),
        (body("text"), "invalid_type", None),
        ({"messages": [{"role": "assistant", "content": [IMAGE]}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "system", "content": "x" * 9000}]}, "too_long", "messages"),
        (body({"type": "text", "text": "x" * 40_000}), "too_long", "messages"),
        (body({"type": "text", "text": "x" * 400_000}), "too_long", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "missing_field", "messages[0].content"),
        ({}, "missing_field", "messages"),
        ([], "invalid_type", None),
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
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_text", "messages"),
        (b'{"a": "data:image/png;base64,AAAA', "invalid_json", None),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json", None),
    ],
)  # fmt: skip
def test_what_is_refused(asked: object, code: str, param: str | None) -> None:
    found = refused(asked)
    assert found[0] == code
    assert param is None or found[1] == param


def test_rights_of_the_tenant() -> None:
    assert refused(body(stream=True), Tenant("t", may_stream=False)) == ("stream_not_allowed", "stream")
    assert refused(body(model="other"), Tenant("t", models=("m",))) == ("model_not_found", "model")
    other = Tenant("t", models=("other",))
    assert refused(body(model="other"), other) == ("model_not_found", "model"), "the engine has no such model"
    serving = dataclasses.replace(RULES, served=frozenset({"m", "other"}))
    assert validation.apply(json.dumps(body(model="other")).encode(), other, serving).model == "other"


@pytest.mark.parametrize("model", ["other", "Jane Doe", "M", "m ", "/models/m"])
def test_models_that_are_not_served_are_refused_here(model: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        accept(body(model=model))
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert model not in str(caught.value).split()


def test_no_text_can_pose_as_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that spells the stand-in, alone or within, would be swapped for the film."""
    monkeypatch.setattr(validation.image_splice, "placeholder", lambda: "data:image/known")
    for spelt in ("\\u0064ata:image/known", "see data:image/known"):
        with pytest.raises(RequestRefused, match="must not contain an image"):
            accept(json.dumps(film()).replace("Generate a report.", spelt).encode())


def test_a_stand_in_that_came_back_in_an_error_is_of_no_use() -> None:
    """The film goes as a field's name, which the error repeats; then in a text, with what was learnt as the image."""
    with pytest.raises(RequestRefused) as told:
        accept({URL: 1, "messages": []})
    learnt = told.value.param
    assert learnt is not None and learnt.startswith("data:image/") and learnt != URL
    asked = body({"type": "text", "text": f'"{URL}'}, {"type": "image_url", "image_url": {"url": learnt}})
    raw = json.dumps(asked).replace(f'"{learnt}"', f'"\\u0064{learnt[1:]}"')
    assert refused(raw.encode())[0] == "invalid_value"


def test_secrets_stay_out_of_repr() -> None:
    assert "ssss" not in repr(RULES)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(URL),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from([field.name for field in SCHEMA.walk()]) | st.text(max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_NAMES, _JSON, max_size=5), st.booleans())
def test_any_json_is_accepted_clean_or_refused(more: dict[str, Any], with_film: bool) -> None:
    asked = (film() if with_film else body()) | more
    try:
        out = sent(accept(asked))
    except RequestRefused:
        return
    assert set(out) <= set(SCHEMA.fields) | {"cache_salt"}
    assert out["temperature"] == 0 and out["max_tokens"] <= 500


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 20))
def test_any_bytes_are_accepted_or_refused(noise: bytes, at: int, cut: int) -> None:
    raw = json.dumps(film(stream=True)).encode()
    try:
        accepted = accept(raw[:at] + noise + raw[at + cut :])
    except RequestRefused:
        return
    assert sent(accepted)["cache_salt"]


def test_the_table_is_the_reference() -> None:
    page = SCHEMA.markdown("field")
    assert page.count("\n") == len(list(SCHEMA.walk())) + 2 == 30
    assert "`messages[].content[].image_url.url`" in page


def test_anonymous_is_a_tenant_like_others() -> None:
    assert sent(accept(body(), ANONYMOUS))["cache_salt"] == validation.cache_salt(b"s" * 32, "anonymous")


def test_a_large_film_passes() -> None:
    """How fast is printed by `make bench-gateway`."""
    large = URL[:22] + base64.b64encode(os.urandom(2_250_000)).decode()
    raw = json.dumps(body({"type": "image_url", "image_url": {"url": large}})).encode()
    assert validation.apply(bytearray(raw), TEAM, RULES).size >= len(large)
