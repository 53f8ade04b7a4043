"""Prompt profiles, indications and the other options of a film: what is sent, what is recorded, what is printed."""

from __future__ import annotations

import hashlib
import json

import pytest

from pedcxr_client import ConfigurationError, FilmRequest, Preparation, PromptEcho
from pedcxr_client.cli.main import main
from pedcxr_client.request.prompts import CARD, training
from pedcxr_serve.gateway.request.client_metadata import ClientMetadata
from tests.support.films import dicom_maker
from tests.support.servers.fake_engine import Answer

SYSTEM = 'You are an expert who reads films of chests.\nThe image is at data:image and "url":"data:image".'
SECRET = "fever since Sunday"


@pytest.fixture
def system(tmp_path) -> str:
    path = tmp_path / "system.txt"
    path.write_text(SYSTEM)
    return str(path)


def test_training_sends_its_system_turn_and_sentence(engine, film, twin):
    report = twin.report(engine.url, film, age="5y", sex="F", prompt_profile=training(SYSTEM))
    first, second = engine.chats[0].json["messages"]
    assert first == {"role": "system", "content": SYSTEM}
    image, text = second["content"]
    assert hashlib.sha256(_bytes(image["image_url"]["url"])).hexdigest() == report.image_sha256
    assert text["text"] == "Generate a radiology report for this chest X-ray of school age girl."
    assert (report.prompt, report.prompt_profile, report.prompt_version) == (text["text"], "training", 1)
    assert report.prompt_sha256 == training(SYSTEM).sha256
    assert (str(report.age), report.sex, report.view) == ("5y", "F", None)
    assert "expert" not in json.dumps(report.as_dict()), "a report must not copy the system text"


def test_profile_tag_is_sent_as_a_header(engine, film, twin):
    twin.report(engine.url, film)
    twin.report(engine.url, film, prompt_profile=training(SYSTEM), indication=SECRET)
    assert [request.headers["x-pedcxr-prompt"] for request in engine.chats] == [CARD.tag, training(SYSTEM).tag]


def test_the_gateway_reads_the_clients_headers(engine, twin):
    film = dicom_maker.film(Modality="CT", BodyPartExamined="KNEE")
    twin.report(engine.url, film, allow=["modality", "body-part", "view"])
    twin.report(engine.url, dicom_maker.film())
    first, second = (ClientMetadata.of(request.headers) for request in engine.chats)
    assert (first.prompt_profile, first.overrides) == (CARD.tag, ("modality", "body-part"))
    assert (second.prompt_profile, second.overrides) == (CARD.tag, None)


def test_stream_sends_what_report_sends(engine, twin):
    film = dicom_maker.film(Modality="CT", PatientAge=None, PatientSex=None, BodyPartExamined="")
    options = {
        "age": "5y",
        "sex": "F",
        "max_tokens": 77,
        "assume_chest": True,
        "allow": ["modality"],
        "preparation": Preparation(resize="model", model_size=(64, 64)),
        "prompt_profile": training(SYSTEM),
        "indication": SECRET,
    }
    twin.report(engine.url, film, **options)
    twin.stream(engine.url, film, **options)
    payload = twin.payload(engine.url, film, **options)
    by_report, by_stream = engine.chats
    assert by_stream.body == by_report.body == payload
    own = [{key: value for key, value in request.headers.items() if "pedcxr" in key} for request in engine.chats]
    assert own[0] == own[1] == {"x-pedcxr-prompt": training(SYSTEM).tag, "x-pedcxr-allow": "modality"}
    assert by_stream.json["max_tokens"] == 77
    assert by_stream.json["messages"][1]["content"][1]["text"].endswith(f"school age girl. Indication: {SECRET}")


@pytest.mark.parametrize(
    "option",
    [
        {"age": "6y"},
        {"sex": "F"},
        {"max_tokens": 77},
        {"allow": ["modality"]},
        {"preparation": Preparation(resize="model", model_size=(64, 64))},
        {"prompt_profile": training(SYSTEM)},
        {"indication": SECRET},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_of_stream_changes_the_request(engine, twin, option):
    film = dicom_maker.film(Modality="CT" if "allow" in option else "CR", PatientAge="007Y", PatientSex="O")
    twin.stream(engine.url, film, **option)
    if "allow" in option:
        assert engine.chats[0].headers["x-pedcxr-allow"] == "modality"
    else:
        twin.stream(engine.url, film)
        assert engine.chats[0].body != engine.chats[1].body


def test_indication_is_sent_and_only_its_digest_recorded(engine, film, twin):
    report = twin.report(engine.url, film, age="5y", indication=SECRET)
    text = engine.chats[0].json["messages"][0]["content"][1]["text"]
    assert text.endswith(f"of a 5-year-old child. Indication: {SECRET}")
    record = report.as_dict()["prompt"]
    assert record["text"].endswith("Indication: (not recorded)")
    assert record["indication_given"] is True
    assert record["indication_sha256"] == hashlib.sha256(SECRET.encode()).hexdigest()
    assert SECRET not in json.dumps(report.as_dict()) + repr(report)


def test_echo_of_the_system_text_raises(engine, film, twin):
    engine.answer = Answer(pieces=("You are an expert who reads", " films of chests. Normal."))
    with pytest.raises(PromptEcho):
        twin.report(engine.url, film, prompt_profile=training(SYSTEM))
    engine.answer = Answer(pieces=("You are an expert who reads", " films of chests. Normal."))
    assert twin.report(engine.url, film).findings, "this request had no system text"


def test_a_profile_name_is_not_a_profile():
    with pytest.raises(ConfigurationError, match="read_training"):
        FilmRequest("film.png", prompt_profile="training")


def test_report_command_accepts_prompt_options_and_warns(engine, path, system, capsys):
    arguments = ["--prompt-profile", "training", "--system-file", system, "--indication", SECRET, "--json"]
    assert main(["report", path, "--age", "5y", *arguments, "--url", engine.url]) == 0
    out, err = capsys.readouterr()
    assert "privacy: the indication is sent to the server verbatim" in err
    assert SECRET not in out + err
    prompt = json.loads(out)["prompt"]
    assert (prompt["profile"], prompt["sha256"]) == ("training", training(SYSTEM).sha256)
    assert engine.chats[0].json["messages"][1]["content"][1]["text"].endswith(f"Indication: {SECRET}")


def test_inspect_shows_the_training_prompt(path, system, capsys):
    arguments = ["inspect", path, "--age", "3y", "--prompt-profile", "training", "--system-file", system]
    assert main(arguments) == 0
    assert "chest X-ray of preschool child." in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"]["sha256"] == training(SYSTEM).sha256


def test_inspect_reports_an_age_above_the_last_group(path, system, capsys):
    arguments = ["--age", "60y", "--allow", "age", "--prompt-profile", "training", "--system-file", system]
    assert main(["inspect", path, *arguments]) == 3
    assert "age: is above 6574 days" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--prompt-profile", "training"], 2, "--system-file"),
        (["--system-file", "x.txt"], 2, "valid only with --prompt-profile training"),
        (["--prompt-profile", "training", "--system-file", "absent.txt"], 2, "absent.txt: cannot be read"),
        (["--prompt-profile", "other"], 2, "invalid choice"),
        (["--indication", "x" * 201], 3, "indication: has 201 characters; the maximum is 200"),
        (["--indication", "a\nb"], 3, "on one line"),
    ],
)
def test_invalid_prompt_options_send_nothing(engine, path, capsys, arguments, code, says):
    assert main(["report", path, *arguments, "--url", engine.url]) == code
    assert says in capsys.readouterr().err
    assert not engine.chats


def _bytes(url: str) -> bytes:
    import base64

    return base64.b64decode(url.partition(",")[2])
