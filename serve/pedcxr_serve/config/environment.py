"""Settings from environment variables: ``PEDCXR_GATEWAY_PORT`` for ``gateway.port``, ``PEDCXR_MODEL`` for ``model``.

Kubernetes sets variables of its own in every pod, named after each Service: a Service ``pedcxr-gateway`` gives
``PEDCXR_GATEWAY_PORT=tcp://10.0.0.7:8000``. They are recognised by their form and ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from pedcxr_serve.config import toml_file
from pedcxr_serve.config.schema import Field
from pedcxr_serve.config.settings import SCHEMA
from pedcxr_serve.errors import ConfigError

CONFIG_VARIABLE = "PEDCXR_CONFIG"
"""Names the TOML file, like ``--config``."""
_PREFIX = "PEDCXR_"
_TABLES = (f"{_PREFIX}GATEWAY_", f"{_PREFIX}ENGINE_", f"{_PREFIX}TELEMETRY_")
_SERVICE_VALUE = re.compile(r"(tcp|udp|sctp)://\S+")
_SERVICE_NAME = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)", re.ASCII
)


def variable_name(key: str) -> str:
    """Return the environment variable of a setting: ``PEDCXR_GATEWAY_PORT`` for ``gateway.port``."""
    return _PREFIX + key.replace(".", "_").upper()


def settings_from(env: Mapping[str, str]) -> dict[str, object]:
    """Return the settings in the environment by key, as text; a list is written as in TOML. Empty means absent.

    Raises:
        ConfigError: a variable that starts with ``PEDCXR_GATEWAY_``, ``PEDCXR_ENGINE_`` or ``PEDCXR_TELEMETRY_`` names
            no setting, so that a misspelt limit is not lost; or a list is not valid TOML.
    """
    fields = {variable_name(field.path): field for field in SCHEMA.walk(by_name=False) if not field.children}
    settings: dict[str, object] = {}
    for name, value in env.items():
        if not name.startswith(_PREFIX) or not value or _SERVICE_VALUE.fullmatch(value):
            continue
        if name in fields:
            settings[fields[name].path] = _value(name, value, fields[name])
        elif name.startswith(_TABLES) and not _SERVICE_NAME.fullmatch(name):
            close = get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else "`pedcxr-serve config` lists the settings"
            raise ConfigError(f"environment: {name}: no setting has this name; {hint}")
    return settings


def _value(name: str, text: str, field: Field) -> object:
    return toml_file.parse(f"value = {text}", f"environment: {name}")["value"] if list in field.types else text
