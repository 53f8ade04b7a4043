"""The model that a server offers, from ``GET /v1/models``."""

from __future__ import annotations

from dataclasses import dataclass

from pedcxr_client.errors import ConfigurationError
from pedcxr_client.films.preparation import is_size
from pedcxr_client.request import sdk_errors


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as its server describes it. A server other than pedcxr's states only the name.

    Attributes:
        name: the model's name in requests.
        image_size: width and height in pixels of the model's input image, or None if unknown.
        revision: the revision of the checkpoint, or None if unknown.
        demo: True for the demonstration model, whose text is synthetic and has no medical meaning.
    """

    name: str
    image_size: tuple[int, int] | None = None
    revision: str | None = None
    demo: bool = False


def choose(listing: object, url: str, name: str | None = None) -> ServedModel:
    """Return the model of this name from the body of ``GET /v1/models``, or the only one.

    A name that is not listed is accepted, because a server may serve more models than it lists.

    Raises:
        ConfigurationError: if no name is given and the server does not offer exactly one model.
        ServerFailed: if the body is not a model list.
    """
    entries = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        raise sdk_errors.not_openai(url)
    models = [_read(entry) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    if name is not None:
        return next((model for model in models if model.name == name), ServedModel(name))
    if len(models) != 1:
        names = ", ".join(sorted(model.name for model in models)[:10]) or "none"
        raise ConfigurationError(f"model: {url} offers {sdk_errors.clean(names)}; name one (--model)")
    return models[0]


def _read(entry: dict[str, object]) -> ServedModel:
    extension = entry.get("pedcxr")
    details = extension if isinstance(extension, dict) else {}
    size, revision = details.get("image_size"), details.get("revision")
    return ServedModel(
        name=str(entry["id"]),
        image_size=(size[0], size[1]) if is_size(size) else None,
        revision=sdk_errors.clean(revision) or None if isinstance(revision, str) else None,
        demo=details.get("demo") is True,
    )
