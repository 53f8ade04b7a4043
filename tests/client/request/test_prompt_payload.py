"""Profiles and indications through the doors: what the server gets, what is kept, what the command says."""

from __future__ import annotations

import hashlib
import json

import pytest

from pedcxr_client import ConfigurationError, FilmRequest, PromptEcho
from pedcxr_client.cli.main import main
from pedcxr_client.request.prompts import CARD, training
from pedcxr_serve.gateway.request.client_metadata import ClientMetadata
from tests.support import dicom_maker
from tests.support.fake_engine import Answer

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
    image, words = second["content"]
    assert hashlib.sha256(_bytes(image["image_url"]["url"])).hexdigest() == report.image_sha256
    assert words["text"] == "Generate a radiology report for this chest X-ray of school age girl."
    assert (report.prompt, report.prompt_profile, report.prompt_version) == (words["text"], "training", 1)
    assert report.prompt_sha256 == training(SYSTEM).sha256
    assert (str(report.age), report.sex, report.view) == ("5y", "F", None)
    assert "expert" not in json.dumps(report.as_dict()), "the system text is not ours to copy"


def test_the_profiles_tag_goes_in_a_header(engine, film, twin):
    twin.report(engine.url, film)
    twin.report(engine.url, film, prompt_profile=training(SYSTEM), indication=SECRET)
    assert [seen.headers["x-pedcxr-prompt"] for seen in engine.chats] == [CARD.tag, training(SYSTEM).tag]


def test_the_audit_log_takes_what_the_client_notes(engine, twin):
    film = dicom_maker.film(Modality="CT", BodyPartExamined="KNEE")
    twin.report(engine.url, film, allow=["modality", "body-part", "view"])
    twin.report(engine.url, dicom_maker.film())
    first, second = (ClientMetadata.of(seen.headers) for seen in engine.chats)
    assert (first.prompt_profile, first.overrides) == (CARD.tag, ("modality", "body-part"))
    assert (second.prompt_profile, second.overrides) == (CARD.tag, None)


def test_an_indication_is_sent_and_only_its_digest_kept(engine, film, twin):
    report = twin.report(engine.url, film, age="5y", indication=SECRET)
    sent = engine.chats[0].json["messages"][0]["content"][1]["text"]
    assert sent.endswith(f"of a 5-year-old child. Indication: {SECRET}")
    record = report.as_dict()["prompt"]
    assert record["text"].endswith("Indication: (not recorded)")
    assert record["indication_given"] is True
    assert record["indication_sha256"] == hashlib.sha256(SECRET.encode()).hexdigest()
    assert SECRET not in json.dumps(report.as_dict()) + repr(report)


def test_an_echo_of_the_system_text_is_no_report(engine, film, twin):
    engine.answer = Answer(pieces=("You are an expert who reads", " films of chests."))
    with pytest.raises(PromptEcho):
        twin.report(engine.url, film, prompt_profile=training(SYSTEM))
    engine.answer = Answer(pieces=("You are an expert who reads", " films of chests."))
    assert twin.report(engine.url, film).findings, "nobody sent it"


def test_a_profile_is_no_name():
    with pytest.raises(ConfigurationError, match="read_training"):
        FilmRequest("film.png", prompt_profile="training")


def test_the_command_takes_all_of_it_and_warns(engine, path, system, capsys):
    arguments = ["--prompt-profile", "training", "--system-file", system, "--indication", SECRET, "--json"]
    assert main(["report", path, "--age", "5y", *arguments, "--url", engine.url]) == 0
    out, err = capsys.readouterr()
    assert "privacy: the indication is sent to the server verbatim" in err
    assert SECRET not in out + err
    prompt = json.loads(out)["prompt"]
    assert (prompt["profile"], prompt["sha256"]) == ("training", training(SYSTEM).sha256)
    assert engine.chats[0].json["messages"][1]["content"][1]["text"].endswith(f"Indication: {SECRET}")


def test_inspect_shows_the_words_of_training(path, system, capsys):
    arguments = ["inspect", path, "--age", "3y", "--prompt-profile", "training", "--system-file", system]
    assert main(arguments) == 0
    assert "chest X-ray of preschool child." in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"]["sha256"] == training(SYSTEM).sha256


def test_inspect_says_where_no_group_holds_the_age(path, system, capsys):
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
        (["--indication", "x" * 201], 3, "indication: has 201 characters"),
        (["--indication", "a\nb"], 3, "on one line"),
    ],
)
def test_what_cannot_be_worded_is_never_sent(engine, path, capsys, arguments, code, says):
    assert main(["report", path, *arguments, "--url", engine.url]) == code
    assert says in capsys.readouterr().err
    assert not engine.chats


def _bytes(url: str) -> bytes:
    import base64

    return base64.b64decode(url.partition(",")[2])
