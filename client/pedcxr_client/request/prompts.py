"""The prompt sent with a film: two profiles, versioned and hashed, and the texts that a caller adds to them.

The prompt omits what is unknown. A change of a word or a rule here needs a new version.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.age import Age
from pedcxr_client.types import Sex

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

Name = Literal["card", "training"]

VERSIONS: dict[Name, int] = {"card": 1, "training": 1}
INSTRUCTION = "Generate a radiology report for this chest X-ray of"
"""The first words of the user text in both profiles."""
GROUPS: tuple[tuple[str, int], ...] = (
    ("neonate", 28),
    ("infant", 730),
    ("preschool", 1825),
    ("school age", 4380),
    ("adolescent", 6574),
)
"""The age groups of the model's training code, each with its last day."""
MARKERS = re.compile(
    r"<(?:(?:start|end)_of_(?:turn|image)|image_soft_token|bos|eos|pad|unk|mask|unused\d+)>|\[multimodal\]"
)
"""Gemma 3's special tokens. The tokenizer interprets them anywhere in a text."""
LARGEST_SYSTEM = 64 * 1024
"""Maximum size of a system text file, in bytes."""
LONGEST_INDICATION = 200
"""Maximum length of an indication, in characters."""
NOT_RECORDED = "(not recorded)"
"""Replaces the indication wherever a prompt is stored."""

_NOUNS: dict[Name, dict[Sex | None, str]] = {
    "card": {"M": "male", "F": "female", None: "child"},
    "training": {"M": "boy", "F": "girl", None: "child"},
}
_TEMPLATES: dict[Name, str] = {
    "card": f"{INSTRUCTION} {{a|an}} {{age words}} {{male|female|child}}.",
    "training": f"{INSTRUCTION} {{age group}} {{boy|girl|child}}.",
}
_INDICATION = " Indication: {indication}"
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_FORBIDDEN_CATEGORIES = ("Cc", "Cs", "Co")  # Unicode: control, surrogate, private use


@dataclass(frozen=True, slots=True, repr=False)
class Prompt:
    """The prompt for one film.

    Attributes:
        profile: the profile that produced it.
        user: the user text as sent.
        recorded: the user text without the indication, for storage.
        indication_sha256: hex digest of the indication, or None without one.
    """

    profile: Profile
    user: str
    recorded: str
    indication_sha256: str | None = None

    def __repr__(self) -> str:
        return f"<Prompt {self.profile.tag}>"


@dataclass(frozen=True, slots=True, repr=False)
class Profile:
    """A form of prompt, the same for all patients.

    Args:
        name: ``"card"``, the sentence of the model card, or ``"training"``, the sentence of the training code.
        system: the system text. ``training`` requires one and ``card`` has none; see `training`.

    Raises:
        ConfigurationError: if the name is unknown or the system text is invalid.
    """

    name: Name = "card"
    system: str | None = None

    def __post_init__(self) -> None:
        if self.name not in VERSIONS:
            raise ConfigurationError(
                f"prompt profile: unknown name {str(self.name)[:20]!r}; choose one of {', '.join(VERSIONS)}"
            )
        if (self.system is None) is not (self.name == "card"):
            raise ConfigurationError(
                "prompt profile training: requires a system text; pass it as a file (--system-file)"
                if self.system is None
                else "prompt profile card: has no system text; omit it, or choose the profile training"
            )
        if self.system is not None:
            _check_system(self.system)

    @property
    def version(self) -> int:
        """The version of the wording; it increases when the prompt for the same patient changes."""
        return VERSIONS[self.name]

    @property
    def sha256(self) -> str:
        """Hex digest of the template and the system text. Profiles with equal digests write equal prompts."""
        groups = "".join(f"{group} {last}\n" for group, last in GROUPS) if self.name == "training" else ""
        parts = (self.name, str(self.version), _TEMPLATES[self.name] + _INDICATION, groups, self.system or "")
        return sha256("\0".join(parts).encode()).hexdigest()

    @property
    def tag(self) -> str:
        """A short identifier such as ``card/1:0123456789ab``, for headers and the server's audit log."""
        return f"{self.name}/{self.version}:{self.sha256[:12]}"

    def prompt(self, age: Age | None = None, sex: Sex | None = None, *, indication: str | None = None) -> Prompt:
        """Return the prompt for one patient.

        Args:
            age, sex: omitted from the prompt if None.
            indication: the reason for the examination, 1 to 200 printable characters on one line. It is sent to the
                server, so it must not identify a person.

        Raises:
            InputError: if the indication is invalid, or the age is above the last age group of ``training``.
        """
        user = card(age, sex) if self.name == "card" else trained(age, sex)
        if indication is None:
            return Prompt(self, user, user)
        indication = _check_indication(indication)
        recorded = user + _INDICATION.format(indication=NOT_RECORDED)
        digest = sha256(indication.encode()).hexdigest()
        return Prompt(self, user + _INDICATION.format(indication=indication), recorded, digest)

    def __repr__(self) -> str:
        return f"<Profile {self.tag}>"


def card(age: Age | None = None, sex: Sex | None = None) -> str:
    """Return the sentence of the model card of MedGemma-4B-IT-Ped.

    >>> card(Age(5, "Y"), "M")
    'Generate a radiology report for this chest X-ray of a 5-year-old male.'
    >>> card()
    'Generate a radiology report for this chest X-ray of a child.'
    """
    noun = _NOUNS["card"][sex]
    words = noun if age is None else f"{age.words} {noun}"
    article = "an" if words.startswith(("8", "11-", "18-")) else "a"
    return f"{INSTRUCTION} {article} {words}."


def trained(age: Age | None = None, sex: Sex | None = None) -> str:
    """Return the sentence of the model's training code, which has no article.

    >>> trained(Age(5, "Y"), "M")
    'Generate a radiology report for this chest X-ray of school age boy.'
    >>> trained()
    'Generate a radiology report for this chest X-ray of child.'

    Raises:
        InputError: if the age is above the last age group.
    """
    noun = _NOUNS["training"][sex]
    return f"{INSTRUCTION} {noun if age is None else f'{group(age)} {noun}'}."


def group(age: Age) -> str:
    """Return the training code's age group, from the minimum age in days: 5 years are 1826 days.

    Raises:
        InputError: above 6574 days, the last age group.
    """
    days = age.value * _DAYS[age.unit]
    for name, last in GROUPS:
        if days <= last:
            return name
    raise InputError(f"age: is above {GROUPS[-1][1]} days, the last age group of the prompt profile training")


CARD = Profile()
"""The default profile."""


def training(system: str) -> Profile:
    """Return the profile ``training`` with its system text.

    pedcxr does not include that text, because it is part of another project under the GPL. Line endings become
    ``\\n`` and surrounding white space is removed, because editors change both.

    Raises:
        ConfigurationError: if the text is invalid.
    """
    return Profile("training", "\n".join(system.splitlines()).strip())


def read_training(path: str | os.PathLike[str]) -> Profile:
    """Return the profile ``training`` with the system text of a file: UTF-8, at most 64 KiB.

    Raises:
        ConfigurationError: if the file cannot be read or its text is invalid. The message does not quote the text.
    """
    try:
        return training(_read_text(path))
    except ConfigurationError as error:
        raise ConfigurationError(f"system file {os.fspath(path)}: {error}") from error.__cause__


def messages(user: str, data_url: str, *, system: str | None = None) -> list[ChatCompletionMessageParam]:
    """Return the chat messages: the system turn, if any, and one user turn with the image before the text.

    Gemma 3 was trained with the image first.
    """
    turn: ChatCompletionMessageParam = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": user}],
    }
    return [turn] if system is None else [{"role": "system", "content": system}, turn]


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_SYSTEM + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "invalid path"
        raise ConfigurationError(f"cannot be read: {reason}") from error
    if len(data) > LARGEST_SYSTEM:
        raise ConfigurationError(f"is larger than {LARGEST_SYSTEM // 1024} KiB; check that it is the right file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"byte {error.start} is not UTF-8; save it as UTF-8") from None


def _check_system(text: str) -> None:
    if not text.strip():
        raise ConfigurationError("the system text is empty")
    if marker := MARKERS.search(text):
        raise ConfigurationError(f"the system text contains {marker[0]}, a special token of the model; remove it")
    for letter in text:
        if unicodedata.category(letter) in _FORBIDDEN_CATEGORIES and letter not in "\n\t":
            raise ConfigurationError(
                f"the system text contains U+{ord(letter):04X}, which is not printable; save it as plain text"
            )


def _check_indication(text: object) -> str:
    # No message quotes the indication, because it may name a person.
    text = text.strip() if isinstance(text, str) else ""
    if not text:
        raise InputError("indication: is empty; omit it if there is none")
    if len(text) > LONGEST_INDICATION:
        raise InputError(f"indication: has {len(text)} characters; the maximum is {LONGEST_INDICATION}")
    if not text.isprintable():
        raise InputError("indication: contains a line break or another non-printable character; write it on one line")
    if MARKERS.search(text):
        raise InputError("indication: contains a special token of the model; remove it")
    return text
