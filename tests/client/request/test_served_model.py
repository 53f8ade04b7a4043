"""The model list of a server, and how the client uses it."""

from __future__ import annotations

import asyncio
import base64
import io

import pytest
from PIL import Image

from pedcxr_client import AsyncClient, Client, ConfigurationError, Preparation, ServedModel
from pedcxr_client.request.connection import choose_model

DETAILS = {"image_size": [448, 336], "revision": "abc123", "demo": True}


def size_sent(engine) -> tuple[int, int]:
    url = engine.chats[-1].json["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size


def test_film_is_resized_to_the_servers_image_size(engine, film, twin):
    engine.details = DETAILS
    report = twin.report(engine.url, film, preparation=Preparation(resize="model"))
    assert size_sent(engine) == (448, 336)
    assert report.image_how[-1] == "stretched to the model's 448 x 336"
    assert report.model_revision == "abc123"


@pytest.mark.parametrize("client", [{}, {"model": "fake"}, {"model": "unlisted"}], ids=["only", "named", "unlisted"])
@pytest.mark.parametrize(
    "details", [None, {}, "x", {"image_size": [0, 896]}, {"image_size": "896"}, {"image_size": [896.5, 1]}]
)
def test_default_image_size_is_gemmas(engine, film, twin, details, client):
    engine.details = details
    report = twin.report(engine.url, film, client=client, preparation=Preparation(resize="model"))
    assert size_sent(engine) == (896, 896)
    assert report.model_revision is None


def test_callers_image_size_overrides_the_servers(engine, film, twin):
    engine.details = DETAILS
    twin.report(engine.url, film, preparation=Preparation(resize="model", model_size=(100, 200)))
    assert size_sent(engine) == (100, 200)


def test_named_model_is_requested_only_for_its_image_size(engine, film, twin):
    engine.models, engine.details = ("other", "fake"), DETAILS
    report = twin.report(engine.url, film, client={"model": "fake"}, preparation=Preparation(resize="model"))
    assert (report.model_revision, size_sent(engine)) == ("abc123", (448, 336))
    assert twin.report(engine.url, film, client={"model": "fake"}).model_revision is None
    assert [request.path for request in engine.requests].count("/v1/models") == 1


def test_model_returns_the_servers_description(engine, film):
    engine.details = DETAILS
    expected = ServedModel("fake", (448, 336), "abc123", True)

    async def run() -> ServedModel:
        async with AsyncClient(engine.url, model="fake") as client:
            return await client.model()

    assert asyncio.run(run()) == expected
    with Client(engine.url) as client:
        assert client.model() == expected
        client.report(film)
    assert [request.path for request in engine.requests].count("/v1/models") == 2


def test_model_list_is_validated():
    def listing(**details: object) -> object:
        return {"data": [{"id": "m", "pedcxr": details}, {"id": 7}, "x"]}

    assert choose_model(listing(revision="a\nb\x1b[31m", demo="yes"), "url") == ServedModel("m", None, "a b[31m")
    assert choose_model(listing(revision=7), "url").revision is None
    assert choose_model(listing(), "url", "another") == ServedModel("another")
    with pytest.raises(ConfigurationError, match="none"):
        choose_model({"data": []}, "url")


@pytest.mark.parametrize(("defaults", "chosen"), [({"b"}, "b"), (set(), None), ({"a", "b"}, None), ({"c"}, None)])
def test_the_default_of_the_server_is_chosen_among_several(defaults: set[str], chosen: str | None) -> None:
    models = {"data": [{"id": name, "pedcxr": {"default": name in defaults}} for name in ("a", "b")]}
    if chosen is None:
        with pytest.raises(ConfigurationError, match="offers a, b; name one"):
            choose_model(models, "url")
    else:
        assert choose_model(models, "url").name == chosen
