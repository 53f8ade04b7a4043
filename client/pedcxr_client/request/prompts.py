"""The words sent with a film: two profiles, versioned and hashed. Pure, but for the file of a system text.

What is not known is left out, never guessed. A word or a rule that changes here needs a new version.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.age import Age
from pedcxr_client.request import free_text
from pedcxr_client.types import Sex

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

Name = Literal["card", "training"]

VERSIONS: dict[Name, int] = {"card": 1, "training": 1}
INSTRUCTION = "Generate a radiology report for this chest X-ray of"
"""How the user text of both profiles begins."""
GROUPS: tuple[tuple[str, int], ...] = (
    ("neonate", 28),
    ("infant", 730),
    ("preschool", 1825),
    ("school age", 4380),
    ("adolescent", 6574),
)
"""The age groups of the training code, each with the last day that belongs to it."""
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


@dataclass(frozen=True, slots=True, repr=False)
class Prompt:
    """The words for one film.

    Attributes:
        profile: whose form they have.
        user: the user text as it is sent.
        recorded: the same without the indication: what may be written down.
        indication_sha256: digest of the indication, None if none was given.
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
        name: ``"card"``, the model card's sentence, or ``"training"``, the sentence of its training code.
        system: the system text of ``training``, which that needs and ``card`` does not have; see :func:`training`.

    Raises:
        ConfigurationError: if a name is of no profile, or a system text cannot be used.
    """

    name: Name = "card"
    system: str | None = None

    def __post_init__(self) -> None:
        if self.name not in VERSIONS:
            raise ConfigurationError(
                f"prompt profile: {str(self.name)[:20]!r} is none; there are {', '.join(VERSIONS)}"
            )
        if (self.system is None) is not (self.name == "card"):
            raise ConfigurationError(
                "prompt profile training: needs its system text; give it as a file (--system-file)"
                if self.system is None
                else "prompt profile card: has no system text; leave it out, or choose the profile training"
            )
        if self.system is not None:
            free_text.check_system(self.system)

    @property
    def version(self) -> int:
        """Counts up whenever the words for the same patient change."""
        return VERSIONS[self.name]

    @property
    def sha256(self) -> str:
        """Digest of the template and the system text, hex: equal where the same patient gets the same words."""
        groups = "".join(f"{group} {last}\n" for group, last in GROUPS) if self.name == "training" else ""
        parts = (self.name, str(self.version), _TEMPLATES[self.name] + _INDICATION, groups, self.system or "")
        return sha256("\0".join(parts).encode()).hexdigest()

    @property
    def tag(self) -> str:
        """Such as ``card/1:0123456789ab``: the word for it in headers and in the server's audit log."""
        return f"{self.name}/{self.version}:{self.sha256[:12]}"

    def prompt(self, age: Age | None = None, sex: Sex | None = None, *, indication: str | None = None) -> Prompt:
        """The words for a child.

        Args:
            age, sex: left out where None.
            indication: why the film was taken: 1 to 200 printable characters on a line. Leaves the machine with the
                film; nothing that names a person belongs in it.

        Raises:
            InputError: if an indication cannot be sent, or no age group of ``training`` holds the age.
        """
        user = card(age, sex) if self.name == "card" else trained(age, sex)
        if indication is None:
            return Prompt(self, user, user)
        indication = free_text.indication(indication)
        recorded = user + _INDICATION.format(indication=free_text.NOT_RECORDED)
        digest = sha256(indication.encode()).hexdigest()
        return Prompt(self, user + _INDICATION.format(indication=indication), recorded, digest)

    def __repr__(self) -> str:
        return f"<Profile {self.tag}>"


def card(age: Age | None = None, sex: Sex | None = None) -> str:
    """The sentence of the model card of MedGemma-4B-IT-Ped.

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
    """The sentence of the model's training code, which has no article.

    >>> trained(Age(5, "Y"), "M")
    'Generate a radiology report for this chest X-ray of school age boy.'
    >>> trained()
    'Generate a radiology report for this chest X-ray of child.'

    Raises:
        InputError: if no age group holds the age.
    """
    noun = _NOUNS["training"][sex]
    return f"{INSTRUCTION} {noun if age is None else f'{group(age)} {noun}'}."


def group(age: Age) -> str:
    """The age group of the training code, by the days that have passed at the least: 5 years are 1826 days.

    Raises:
        InputError: above the last one, 6574 days.
    """
    days = age.value * _DAYS[age.unit]
    for name, last in GROUPS:
        if days <= last:
            return name
    raise InputError(f"age: is above {GROUPS[-1][1]} days, the last age group of the prompt profile training")


CARD = Profile()
"""The default."""


def training(system: str) -> Profile:
    """The profile ``training`` with its system text, which is GPL text of another project and not ours to ship.

    Ends of lines become ``\\n`` and the white space at both ends goes, since editors change those.

    Raises:
        ConfigurationError: if the text cannot be used.
    """
    return Profile("training", "\n".join(system.splitlines()).strip())


def read_training(path: str | os.PathLike[str]) -> Profile:
    """The profile ``training``, its system text read from a file of at most 64 KiB of UTF-8.

    Raises:
        ConfigurationError: if it cannot be read, or its text cannot be used; the text is not repeated.
    """
    try:
        return training(free_text.read(path))
    except ConfigurationError as error:
        raise ConfigurationError(f"system file {os.fspath(path)}: {error}") from error.__cause__


def messages(user: str, data_url: str, *, system: str | None = None) -> list[ChatCompletionMessageParam]:
    """A system turn if there is a system text, then one user turn, the image before the words as Gemma 3 has it."""
    turn: ChatCompletionMessageParam = {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_url}},
            {"type": "text", "text": user},
        ],
    }
    return [turn] if system is None else [{"role": "system", "content": system}, turn]
