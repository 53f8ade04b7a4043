"""From the word a user gives to a folder with a checkpoint: the demo, a folder, or a download from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from pedcxr_serve.errors import ConfigError

__all__ = ["resolve"]

# What serving needs and nothing else: no optimizer states, no second copy in another format.
FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def resolve(model: str, revision: str | None = None) -> Path:
    """The folder of a model; a hub id is downloaded on first use (9 GB for the 4B model) and cached.

    Args:
        model: ``demo``, a folder, or a hub id ``owner/name``.
        revision: Branch, tag or commit of a hub id; not allowed for the others.

    Raises:
        ConfigError: No such folder or repository, no access, or no network; the message says what to do.
    """
    folder = Path(model).expanduser()
    local = model == "demo" or folder.is_dir()
    if local and revision:
        raise ConfigError(f"revision = {revision!r}: allowed only with a hub id; {model!r} is a folder. Leave it out.")
    if model == "demo":
        return _demo()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ConfigError(f"model = {model!r}: is a file. Give the folder that holds config.json and the weights.")
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f'model = {model!r}: no such folder. Allowed: "demo", an existing folder, or a hub id like owner/name.'
        )
    return _download(model, revision)


def _demo() -> Path:
    from pedcxr_serve.demo import CHECKPOINT

    folder = Path(CHECKPOINT)
    if not folder.is_dir():
        raise ConfigError(f"model = 'demo': {folder} is missing from this installation. Install pedcxr again.")
    return folder


def _download(model: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"model = {model!r}: a hub id needs huggingface_hub. Install pedcxr[gpu] or pedcxr[cpu]."
        ) from error
    at = f"model = {model!r}" + (f", revision = {revision!r}" if revision else "")
    page = f"{constants.ENDPOINT}/{model}"
    elsewhere = f"or download it where there is a network (`hf download {model}`) and give the folder."
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{at}: the repository is gated. Accept its licence at {page} with your account, then set HF_TOKEN to a "
            "token of that account (or run `hf auth login`) and start again."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{at}: the repository has no such revision. See {page}/commits for those it has.") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{at}: the hub knows no such repository (or it is private), and there is no folder of that name here. "
            "Check the spelling; for a private one set HF_TOKEN."
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{at}: not a valid hub id ({error}). Allowed is owner/name.") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConfigError(f"{at}: {_why_unreachable(error, constants.HF_HUB_OFFLINE)} {elsewhere}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = f"the hub answered {status}" if status else f"the download failed ({type(error).__name__}: {error})"
        raise ConfigError(f"{at}: {what}. What has arrived is kept: start again later, {elsewhere}") from error


def _why_unreachable(error: BaseException, offline: bool) -> str:
    if offline:
        return "not in the local cache, and HF_HUB_OFFLINE is set. Unset it to download,"
    status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
    what = f"the hub answered {status}" if status else "the hub cannot be reached"
    return f"not complete in the local cache, and {what}. Check network, proxy and HF_ENDPOINT,"
