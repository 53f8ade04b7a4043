"""TLS of the public port: a certificate and its key, checked at start and followed when they are renewed."""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from prometheus_client import CollectorRegistry, Counter, Gauge

from pedcxr_serve.errors import ConfigError

__all__ = ["HANDSHAKE_S", "Pair", "Tls", "load"]

HANDSHAKE_S = 10.0
"""Seconds that a client may take over a handshake; meanwhile it holds nothing but its connection."""

_log = logging.getLogger("pedcxr.gateway")
_Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, loaded; ``expires`` is the certificate's last moment."""

    context: ssl.SSLContext
    expires: datetime


class Tls:
    """The pair in force.

    A renewed pair is loaded whole into a context of its own before a connection gets to see any of it, and every
    handshake is given the context in force at its hello: certificate and key cannot mix, and connections that are
    open keep theirs.

    Args:
        certificate: PEM file with the certificate first and the chain behind it.
        key: PEM file with its private key, without a passphrase.

    Raises:
        ConfigError: the pair cannot be used; the message names file and remedy. Later, a broken pair changes nothing.
    """

    def __init__(
        self, certificate: Path, key: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._files = (certificate, key)
        self._now = now
        self._seen = self._unsettled = self._stamps()
        self.pair = load(certificate, key, now())
        self.reloads = 0
        self.context = self.pair.context
        """For the listener, all the time."""
        self.context.sni_callback = self._choose
        self.failures = Counter(
            "pedcxr_tls_reload_failures", "Renewed certificates that could not be used.", registry=None
        )
        self._expiry = Gauge("pedcxr_tls_expiry_seconds", "End of the certificate in force, Unix time.", registry=None)
        self._expiry.set_function(lambda: self.pair.expires.timestamp())
        if key.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            _log.warning("gateway.tls_key: %s can be read by other users of this machine; chmod 600 it", key)

    def register(self, registry: CollectorRegistry) -> None:
        """Show the certificate's end and the count of failed renewals among a server's metrics."""
        registry.register(self.failures)
        registry.register(self._expiry)

    def reload(self) -> None:
        """Read both files again, changed or not; a pair that cannot be used is told in the log and counted."""
        self._seen = self._unsettled = self._stamps()
        try:
            pair = load(*self._files, self._now())
        except ConfigError as error:
            self.failures.inc()
            _log.error("certificate kept as it was, good until %s: %s", _day(self.pair.expires), error)
            return
        self.pair = pair
        self.reloads += 1
        _log.warning("certificate reloaded from %s, good until %s", self._files[0], _day(pair.expires))

    def look(self) -> None:
        """Reload if the files are others than those last read and were the same at the last look.

        Renewals write two files; in between they do not belong together.
        """
        stamps = self._stamps()
        if stamps != self._seen and stamps == self._unsettled:
            self.reload()
        self._unsettled = stamps

    def _choose(self, handshake: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _front: ssl.SSLContext) -> None:
        handshake.context = self.pair.context

    def _stamps(self) -> _Stamp:
        return tuple(_stamp(path) for path in self._files)


def load(certificate: Path, key: Path, now: datetime) -> Pair:
    """Read and check a pair.

    Raises:
        ConfigError: unreadable, no PEM, not of one another, with a passphrase, expired or not yet good.
    """
    try:
        leaf = x509.load_pem_x509_certificates(_read(certificate, "tls_cert"))[0]
    except ValueError as error:
        raise _refused("tls_cert", certificate, "holds no certificate in PEM; give one, its chain behind it") from error
    begins, expires = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if now > expires:
        raise _refused("tls_cert", certificate, f"expired on {_day(expires)}; renew it")
    if now < begins:
        raise _refused("tls_cert", certificate, f"is good from {_day(begins)} only; is this machine's clock right?")
    _read(key, "tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    asked: list[bool] = []

    def passphrase() -> str:  # without it OpenSSL would ask at the terminal
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(certificate, key, passphrase)
    except ssl.SSLError as error:
        raise _refused("tls_key", key, _why(error, certificate, asked=bool(asked))) from error
    except OSError as error:
        raise _refused("tls_key", key, f"cannot be read ({error.strerror})") from error
    return Pair(context, expires)


def _why(error: ssl.SSLError, certificate: Path, *, asked: bool) -> str:
    if asked:
        return "has a passphrase, which nobody is there to type; give the key without one, chmod 600"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"is not the key of {certificate}; give the one that the certificate was made for"
    return f"cannot be used with {certificate} ({error.reason or 'no PEM'}); give its private key in PEM"


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _refused(setting, path, f"cannot be read ({error.strerror}); give a readable PEM file") from error


def _refused(setting: str, path: Path, what: str) -> ConfigError:
    return ConfigError(f"gateway.{setting}: {path} {what}")


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
