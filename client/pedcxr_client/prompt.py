"""The words sent with a film. Pure: typed fields in, text and OpenAI messages out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .age import Age

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

Sex = Literal["M", "F"]

_NOUN: dict[Sex | None, str] = {"M": "male", "F": "female", None: "child"}


def card(age: Age | None = None, sex: Sex | None = None) -> str:
    """The prompt of the model card of MedGemma-4B-IT-Ped (profile ``card``), which has no system text.

    What is not known is left out, never guessed.

    >>> card(Age(5, "Y"), "M")
    'Generate a radiology report for this chest X-ray of a 5-year-old male.'
    >>> card()
    'Generate a radiology report for this chest X-ray of a child.'
    """
    words = _NOUN[sex] if age is None else f"{age.words} {_NOUN[sex]}"
    article = "an" if words.startswith(("8", "11-", "18-")) else "a"
    return f"Generate a radiology report for this chest X-ray of {article} {words}."


def messages(text: str, data_url: str) -> list[ChatCompletionMessageParam]:
    """One user turn, the image before the words, as Gemma 3's chat template and the model card have it."""
    return [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": data_url}},
                {"type": "text", "text": text},
            ],
        }
    ]
