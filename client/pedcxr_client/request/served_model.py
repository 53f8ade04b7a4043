"""The model that a server offers, as ``GET /v1/models`` describes it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pedcxr_client.errors import ConfigurationError
from pedcxr_client.films.geometry import is_size
from pedcxr_client.request import sdk_errors


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is known of a model before it is asked anything. A server that is not pedcxr's gives the name alone.

    Attributes:
        name: as requests name it.
        image_size: width and height in pixels that the model's processor makes of every film, or None.
        revision: of the checkpoint: which weights these are; None if the server does not say.
        demo: it is the demonstration model, and what it writes is no medical text.
    """

    name: str
    image_size: tuple[int, int] | None = None
    revision: str | None = None
    demo: bool = False


def choose(listing: object, url: str, name: str | None = None) -> ServedModel:
    """The model of this name in a ``GET /v1/models`` answer, or the only one. A name that is not there is kept: the
    server may know more than it lists.

    Raises:
        ConfigurationError: without a name, if there are several or none.
        ServerFailed: if it is no such answer.
    """
    entries = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        raise sdk_errors.not_openai(url)
    offered = [_read(entry) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    if name is not None:
        return next((model for model in offered if model.name == name), ServedModel(name))
    if len(offered) != 1:
        names = ", ".join(sorted(model.name for model in offered)[:10]) or "none"
        raise ConfigurationError(f"model: name one (--model); {url} offers {sdk_errors.clean(names)}")
    return offered[0]


def _read(entry: dict[str, object]) -> ServedModel:
    ours = entry.get("pedcxr")
    told = ours if isinstance(ours, dict) else {}
    size, revision = told.get("image_size"), told.get("revision")
    return ServedModel(
        name=str(entry["id"]),
        image_size=(size[0], size[1]) if is_size(size) else None,
        revision=sdk_errors.clean(revision) or None if isinstance(revision, str) else None,
        demo=told.get("demo") is True,
    )
