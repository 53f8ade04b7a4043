"""Workload files: every key is known and checked; bodies are those of the client, unique at no cost."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from pedcxr_client import Client, ConfigurationError, InputError
from pedcxr_client.bench import bodies, workload
from pedcxr_client.bench.bodies import Supply
from pedcxr_client.bench.workload import Films, PatientMix, Tenant, Workload
from pedcxr_client.types import ServedModel

MODEL = ServedModel("fake", (896, 896))


def build(films: Films, **fields) -> list[bodies.Case]:
    return bodies.build(Workload(films=films, **fields), MODEL, lambda numbers: numbers)


def image_of(body: bytes) -> bytes:
    url = json.loads(body)["messages"][-1]["content"][0]["image_url"]["url"]
    return base64.b64decode(url.partition(",")[2], validate=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[films]\nsorce = 'folder'", "films.sorce: unknown key; known are"),
        ("[film]\ncount = 3", "film: unknown key; known are"),
        ("[[tenants]]\nname = 'a'\nkey = 'secret'", "tenants[0].key: unknown key"),
        ("[films]\ncount = 'many'", "films.count: must be an integer"),
        ("[films]\ncount = true", "films.count: must be an integer"),
        ("[films]\nreuse = 2", "films.reuse: must be from 0 to 1"),
        ("[films]\nsource = 'folder'", "films.path: names no films"),
        ("[films]\nsource = 'pacs'", "films.source: must be one of"),
        ("[films]\nunique = 'film'\nreuse = 0.5", "films.reuse: contradicts films.unique"),
        ("[load]\nkind = 'burst'", "load.kind: must be one of"),
        ("[load]\nkind = 'steps'", "load.rates: lists no rate"),
        ("[load]\nkind = 'sweep'", "load.loads: lists no number of requests in flight"),
        ("[load]\nkind = 'sweep'\nloads = [1, 0]", "load.loads: must be above 0"),
        ("[load]\nloads = [1.5]", "load.loads: must be a list of integers"),
        ("[load]\nloads = [true]", "load.loads: must be a list of integers"),
        ("[load]\nrates = ['a']", "load.rates: must be a list of numbers"),
        ("[load]\nrate = -1", "rates must be above 0"),
        ("[[patients]]\nage = '5 parsecs'", "patients: "),
        ("[load]\nrate = inf", "load.rate: must be a finite number"),
        ("[load]\nseconds = nan", "load.seconds: must be a finite number"),
        ("[load]\nrates = [1, inf]", "load.rates: must be a finite number"),
        (f"[load]\nrate = 1{'0' * 400}", "load.rate: must be a finite number"),
        ("[[tenants]]\nweight = inf", "tenants[0].weight: must be a finite number"),
        ("[slo]\nttft = -1", "slo: limits are seconds"),
        ("[films]\nseed = -1", "films.seed: must be 0 or more"),
        ("[films]\nwidth = 50000\nheight = 50000", "films.width, films.height: must be 32 to 10000 pixels, or 0"),
        ("[films]\nlarge_height = 0", "films.large_width, films.large_height: must be 32 to 10000 pixels"),
        ("[films]\nwidth = 512", "films: width and height need each other"),
        ("[films]\nsource = 'folder'\npath = 'a'\nwidth = 64\nheight = 64", "are for phantoms; remove them"),
        ("[reports]\nallow = ['typo']", "reports.allow: may hold truncated, looping, "),
        ("[reports]\nallow = ['aborted']", "reports.allow: may hold truncated, looping, "),
        ("films = 3", "films: must be a table"),
        ("tenants = 3", "tenants: must be tables, written [[tenants]]"),
        ("[[tenants]]\nname = 'a'\n[[tenants]]\nname = 'a'", "two have the same name"),
        ("= 3", "is not valid TOML"),
    ],
)
def test_a_wrong_workload_names_the_key(tmp_path, text, words):
    path = tmp_path / "workload.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        workload.read(str(path))
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_a_full_workload_is_read(tmp_path):
    path = tmp_path / "workload.toml"
    path.write_text(
        "[films]\nsource = 'folder'\npath = 'films'\nunique = 'film'\n[[patients]]\nage = '3w'\nweight = 2\n"
        "[reports]\nmax_tokens = 128\nallow = ['truncated']\n[[tenants]]\nname = 'ward'\nkey_file = 'key'\n"
        "[load]\nkind = 'steps'\nrates = [1, 2.5]\n[slo]\nttft = 2\ne2e = 15\n"
    )
    (tmp_path / "key").write_text("secret\n")
    load = workload.read(str(path))
    assert load.path(load.films.path) == tmp_path / "films"
    assert load.load.rates == (1, 2.5)
    assert load.patients == (PatientMix("3w", "", 2.0),)
    assert load.slo.text() == "TTFT <= 2 s and E2E <= 15 s"
    assert workload.key_of(load.tenants[0], load, None) == "secret"
    assert "key" not in json.dumps(load.described()["tenants"])


def test_byte_order_marks_are_accepted(tmp_path):
    path = tmp_path / "workload.toml"
    path.write_text("[[tenants]]\nname = 'ward'\nkey_file = 'key'\n", encoding="utf-8-sig")
    (tmp_path / "key").write_text("secret\n", encoding="utf-8-sig")
    load = workload.read(str(path))
    assert workload.key_of(load.tenants[0], load, None) == "secret"


def test_a_key_variable_that_is_not_set_is_an_error(monkeypatch):
    monkeypatch.delenv("WARD_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="WARD_KEY is not set"):
        workload.key_of(Tenant("ward", key_env="WARD_KEY"), Workload(), None)


@pytest.mark.parametrize("text", ["one\ntwo\n", "\n", "k\u00e9y"])
def test_a_key_that_no_header_can_carry_is_an_error(tmp_path, text):
    (tmp_path / "key").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="tenants: ward: the key is empty or contains characters"):
        workload.key_of(Tenant("ward", key_file="key"), Workload(folder=tmp_path), None)


def test_bodies_are_those_of_the_client(tmp_path):
    film = Image.linear_gradient("L")
    film.save(tmp_path / "a.png")
    film.save(tmp_path / "b.jpg")
    cases = build(Films("folder", str(tmp_path)), patients=(PatientMix("5y", "M"),))
    with Client(model="fake") as client:
        for case, name in zip(cases, ("a.png", "b.jpg"), strict=True):
            assert case.body == client.payload(str(tmp_path / name), default_age="5y", default_sex="M")
    assert cases[0].headers["X-Pedcxr-Prompt"]


@pytest.mark.parametrize("jpeg", [0.0, 1.0], ids=["png", "jpeg"])
def test_a_comment_changes_the_bytes_and_not_the_pixels(jpeg):
    (case,) = build(Films(count=1, jpeg=jpeg))
    first, second = (image_of(case.unique_body(number)) for number in (7, 2**64 + 9))
    assert len({first, second, image_of(case.body)}) == 3
    pixels = [Image.open(io.BytesIO(data)) for data in (first, second, image_of(case.body))]
    assert pixels[0].format == ("JPEG" if jpeg else "PNG")
    assert pixels[0].tobytes() == pixels[1].tobytes() == pixels[2].tobytes()
    assert len(case.unique_body(7)) - len(case.body) in (48, 68)


def test_an_empty_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "notes.txt").write_text("no film")
    with pytest.raises(InputError, match="contains no film"):
        build(Films("folder", str(tmp_path)))


def test_a_damaged_film_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"^a\.png: "):
        build(Films("folder", str(tmp_path)))


def test_a_manifest_gives_ages(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("path,id,age,sex\na.png,x,10d,F\n")
    (case,) = build(Films("manifest", str(tmp_path / "m.csv")))
    assert case.id == "x"
    assert b"10-day-old female" in case.body


def test_phantoms_of_two_sizes():
    cases = build(Films(count=6, large_share=0.5, large_width=260, large_height=300))
    sizes = {Image.open(io.BytesIO(image_of(case.body))).size for case in cases}
    assert (260, 300) in sizes
    assert len(sizes) == 2


def test_the_supply_mixes_tenants_by_weight_and_repeats_no_bytes():
    tenants = (Tenant("a", weight=3), Tenant("b"))
    load = Workload(films=Films(count=4))
    supply = Supply(load, build(load.films), tenants)
    draws = [draw for _ in range(400) if (draw := supply.next())]
    assert 260 <= sum(draw.tenant.name == "a" for draw in draws) <= 340  # seeded
    assert len({draw.body for draw in draws}) == 400
    assert len({draw.case.id for draw in draws}) == 4


@pytest.mark.parametrize(
    ("weights", "number", "lanes"),
    [((3, 1), 8, "aaaaaabb"), ((100, 1), 4, "aaab"), ((1, 1), 3, "aab"), ((1, 1), 1, [None])],
)
def test_the_lanes_of_a_closed_loop_have_their_tenants(weights, number, lanes):
    supply = Supply(Workload(), [], tuple(Tenant(name, weight=one) for name, one in zip("ab", weights, strict=True)))
    assert [lane and lane.name for lane in supply.lanes(number)] == [*lanes]


def test_reuse_repeats_the_very_bytes():
    load = Workload(films=Films(count=4, reuse=0.5))
    supply = Supply(load, build(load.films), (Tenant(),))
    sent = [draw.body for _ in range(200) if (draw := supply.next())]
    assert 80 <= 200 - len(set(sent)) <= 120


def test_films_that_are_sent_once_run_out():
    load = Workload(films=Films(count=3, unique="film"))
    cases = build(load.films)
    supply = Supply(load, cases, (Tenant(),))
    assert [draw and draw.body for draw in (supply.next() for _ in range(4))] == [*(case.body for case in cases), None]
