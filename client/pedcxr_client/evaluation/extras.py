"""What the extra brings, imported only where it is used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from pedcxr_client.errors import ConfigurationError

INSTALL = 'pip install "pedcxr[eval]"'


def need(module: str) -> ModuleType:
    """Import a module of the extra.

    Raises:
        ConfigurationError: if it is not installed; the message is the line to type.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"pedcxr eval needs {module.partition('.')[0]}: {INSTALL}") from error
