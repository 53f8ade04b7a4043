"""Which models a tenant may use: the checkpoint and its adapters, each a name that requests may give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pedcxr_serve.gateway.auth.tenants import Tenant


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that the engine has loaded.

    Attributes:
        revision: of the adapter alone (`pedcxr_serve.checkpoint.adapter`).
        tenants: names of the tenants that may use it; empty means all.
    """

    revision: str
    tenants: frozenset[str] = frozenset()


NO_ADAPTERS: Mapping[str, ServedAdapter] = MappingProxyType({})


def may_use(tenant: Tenant, model: str, adapters: Mapping[str, ServedAdapter]) -> bool:
    """Return whether the tenant may request the model, by its own list of models and by the adapter's of tenants."""
    adapter = adapters.get(model)
    return tenant.may_use(model) and (adapter is None or not adapter.tenants or tenant.name in adapter.tenants)


def revision_of(model: str, base: str | None, adapters: Mapping[str, ServedAdapter]) -> str | None:
    """Return the revision of the weights that answer: ``BASE``, or ``BASE+ADAPTER``; None if that of the base is."""
    adapter = adapters.get(model)
    return base if adapter is None or base is None else f"{base}+{adapter.revision}"
