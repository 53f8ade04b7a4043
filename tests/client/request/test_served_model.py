"""What a server tells of its model, and what the client makes of it."""

from __future__ import annotations

import asyncio
import base64
import io

import pytest
from PIL import Image

from pedcxr_client import AsyncClient, Client, ConfigurationError, Preparation, ServedModel
from pedcxr_client.request.connection import choose_model

TOLD = {"image_size": [448, 336], "revision": "abc123", "demo": True}


def size_sent(engine) -> tuple[int, int]:
    url = engine.chats[-1].json["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size


def test_a_film_is_stretched_to_the_size_that_the_server_tells(engine, film, twin):
    engine.details = TOLD
    report = twin.report(engine.url, film, preparation=Preparation(resize="model"))
    assert size_sent(engine) == (448, 336)
    assert report.image_how[-1] == "stretched to the model's 448 x 336"
    assert report.model_revision == "abc123"


@pytest.mark.parametrize("client", [{}, {"model": "fake"}, {"model": "unlisted"}], ids=["only", "named", "unlisted"])
@pytest.mark.parametrize(
    "told", [None, {}, "x", {"image_size": [0, 896]}, {"image_size": "896"}, {"image_size": [896.5, 1]}]
)
def test_without_a_size_it_is_gemmas_own(engine, film, twin, told, client):
    engine.details = told
    report = twin.report(engine.url, film, client=client, preparation=Preparation(resize="model"))
    assert size_sent(engine) == (896, 896)
    assert report.model_revision is None


def test_a_size_that_the_caller_gives_goes_before_the_servers(engine, film, twin):
    engine.details = TOLD
    twin.report(engine.url, film, preparation=Preparation(resize="model", model_size=(100, 200)))
    assert size_sent(engine) == (100, 200)


def test_a_named_model_is_looked_up_only_for_its_size(engine, film, twin):
    engine.models, engine.details = ("other", "fake"), TOLD
    report = twin.report(engine.url, film, client={"model": "fake"}, preparation=Preparation(resize="model"))
    assert (report.model_revision, size_sent(engine)) == ("abc123", (448, 336))
    assert twin.report(engine.url, film, client={"model": "fake"}).model_revision is None
    assert [seen.path for seen in engine.requests].count("/v1/models") == 1


def test_the_model_can_be_asked_for(engine, film):
    engine.details = TOLD
    expected = ServedModel("fake", (448, 336), "abc123", True)

    async def run() -> ServedModel:
        async with AsyncClient(engine.url, model="fake") as client:
            return await client.model()

    assert asyncio.run(run()) == expected
    with Client(engine.url) as client:
        assert client.model() == expected
        client.report(film)
    assert [seen.path for seen in engine.requests].count("/v1/models") == 2


def test_a_listing_is_read_with_care():
    def listing(**told: object) -> object:
        return {"data": [{"id": "m", "pedcxr": told}, {"id": 7}, "x"]}

    assert choose_model(listing(revision="a\nb\x1b[31m", demo="yes"), "url") == ServedModel("m", None, "a b[31m")
    assert choose_model(listing(revision=7), "url").revision is None
    assert choose_model(listing(), "url", "another") == ServedModel("another")
    with pytest.raises(ConfigurationError, match="none"):
        choose_model({"data": []}, "url")
