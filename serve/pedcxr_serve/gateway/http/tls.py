"""TLS of the public port: certificate and key, checked at start and reloaded when they are renewed."""

from __future__ import annotations

import logging
import ssl
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from prometheus_client import CollectorRegistry, Counter, Gauge

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.watched_file import WatchedFiles

_log = logging.getLogger("pedcxr.gateway")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A loaded certificate with its key; ``expires`` is the end of the certificate's validity."""

    context: ssl.SSLContext
    expires: datetime


class CertificateStore:
    """The current certificate and key.

    A renewed pair is loaded into a new context before any connection uses it, and each handshake uses the context that
    is current at its ClientHello. So certificate and key of two pairs never mix, and open connections keep theirs.

    Args:
        certificate: PEM file with the certificate first and the chain after it.
        key: PEM file with the private key, without a passphrase.

    Raises:
        ConfigError: the pair cannot be used; the message names file and remedy. After the start, an invalid pair
            leaves the current one in use.
    """

    def __init__(
        self, certificate: Path, key: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._paths = (certificate, key)
        self._now = now
        self._files = WatchedFiles(certificate, key, settle=True)
        self.pair = load(certificate, key, now())
        self.reloads = 0
        self.broken = False
        """Whether the files as they are now could not be loaded."""
        self.read_at = time.time()
        """Time of the last successful read, Unix time."""
        self.context = self.pair.context
        """The context of the listener, which never changes."""
        self.context.sni_callback = self._use_current_pair
        self.failures = Counter(
            "pedcxr_tls_reload_failures", "Renewed certificates that could not be loaded.", registry=None
        )
        self._not_after = Gauge(
            "pedcxr_tls_certificate_not_after_timestamp_seconds",
            "Expiry of the current certificate, Unix time.",
            registry=None,
        )
        self._expiry = Gauge(
            "pedcxr_tls_expiry_seconds",
            "Deprecated name of pedcxr_tls_certificate_not_after_timestamp_seconds.",
            registry=None,
        )
        for gauge in (self._not_after, self._expiry):
            gauge.set_function(lambda: self.pair.expires.timestamp())
        if _is_readable_by_others(key):
            _log.warning("gateway.tls_key: %s is readable by other users of this machine; chmod 600 it", key)

    def register(self, registry: CollectorRegistry) -> None:
        """Add the metrics of expiry and failed renewals to a registry."""
        registry.register(self.failures)
        registry.register(self._not_after)
        registry.register(self._expiry)

    def reload(self) -> None:
        """Load both files again. A pair that cannot be used is logged and counted, and the current one is kept."""
        self._files.mark_read()
        try:
            pair = load(*self._paths, self._now())
        except ConfigError as error:
            self.failures.inc()
            self.broken = True
            _log.error("certificate not reloaded, the current one expires %s: %s", _day(self.pair.expires), error)
            return
        self.pair, self.broken, self.read_at = pair, False, time.time()
        self.reloads += 1
        _log.warning("certificate reloaded from %s, expires %s", self._paths[0], _day(pair.expires))

    def reload_if_changed(self) -> None:
        """Reload if the files have changed and their state is stable; report files that were replaced out of sight."""
        if self._files.changed():
            self.reload()
        if not self.broken and self._files.orphaned:
            self.broken = True
            _log.error(
                "certificate not reloaded: %s or %s was replaced outside of this mount: mount its folder", *self._paths
            )

    def _use_current_pair(
        self, handshake: ssl.SSLObject | ssl.SSLSocket, _server_name: str | None, _context: ssl.SSLContext
    ) -> None:
        handshake.context = self.pair.context


def load(certificate: Path, key: Path, now: datetime) -> KeyPair:
    """Read and check certificate and key.

    Raises:
        ConfigError: a file is unreadable or not PEM, the key has a passphrase or does not match, or the certificate
            is expired or not yet valid.
    """
    try:
        leaf = x509.load_pem_x509_certificates(_read(certificate, "tls_cert"))[0]
    except ValueError as error:
        message = "contains no PEM certificate; give the certificate followed by its chain"
        raise _config_error("tls_cert", certificate, message) from error
    begins, expires = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if now > expires:
        raise _config_error("tls_cert", certificate, f"expired on {_day(expires)}; renew it")
    if now < begins:
        raise _config_error("tls_cert", certificate, f"is not valid before {_day(begins)}; check this machine's clock")
    _read(key, "tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    has_passphrase = False

    def passphrase() -> str:  # without this callback OpenSSL would prompt at the terminal
        nonlocal has_passphrase
        has_passphrase = True
        return ""

    try:
        context.load_cert_chain(certificate, key, passphrase)
    except ssl.SSLError as error:
        reason = _reason(error, certificate, has_passphrase=has_passphrase)
        raise _config_error("tls_key", key, reason) from error
    except OSError as error:
        raise _config_error("tls_key", key, f"cannot be read ({error.strerror})") from error
    return KeyPair(context, expires)


def _reason(error: ssl.SSLError, certificate: Path, *, has_passphrase: bool) -> str:
    if has_passphrase:
        return "has a passphrase, which the server cannot ask for; give the key without a passphrase, chmod 600"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"is not the key of {certificate}; give the key that belongs to the certificate"
    return f"cannot be used with {certificate} ({error.reason or 'no PEM'}); give its private key in PEM"


def _is_readable_by_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:  # a renewal replaces the file, which was there when it was loaded
        return False


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _config_error(setting, path, f"cannot be read ({error.strerror}); give a readable PEM file") from error


def _config_error(setting: str, path: Path, what: str) -> ConfigError:
    return ConfigError(f"gateway.{setting}: {path} {what}")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
