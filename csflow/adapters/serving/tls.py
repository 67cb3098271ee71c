"""Encrypt connections: a certificate and its key for REST and gRPC, read again when they are renewed."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path
from typing import Any, NoReturn

from csflow.adapters.serving.watched import Watched
from csflow.errors import UsageError

_logger = logging.getLogger("csflow.serving")


class Certificate:
    """A certificate with its chain and key, in two PEM files.

    Args:
        certificate: The server's certificate first, then those in between.
        key: Its private key, not encrypted.

    Attributes:
        context: What REST accepts connections with. It always uses the newest files.

    Raises:
        UsageError: If a file is missing, or the two are not a certificate and its key.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._watched = Watched(certificate, key)
        self._lock = threading.Lock()
        self._newest, self._pem = self._read()
        self.context = self._newest
        self.context.sni_callback = self._use_newest

    @classmethod
    def configured(cls, certificate: Path | None, key: Path | None) -> Certificate | None:
        """Return the certificate; None if there is none.

        Raises:
            UsageError: If only one of the two files is given, or they cannot be used.
        """
        if (certificate is None) != (key is None):
            raise UsageError("TLS needs both files: --tls-cert and --tls-key.")
        return None if certificate is None or key is None else cls(certificate, key)

    def refresh(self, *, at_once: bool = False) -> None:
        """Read the files again if they have changed; what was used before stays if they cannot be used.

        Args:
            at_once: True to look even if that was done a moment ago.
        """
        with self._lock:
            if not self._watched.changed(at_once=at_once):
                return
            before = self._watched.signature()
            try:
                newest, pem = self._read()
            except UsageError as error:
                _logger.error("%s The certificate before stays.", error)
                return
            if self._watched.signature() != before:  # they are being written
                self._watched.look_again()
                return
            self._newest, self._pem = newest, pem
            _logger.info("%s: the new certificate is used", self._certificate)

    def credentials(self) -> Any:
        """Return gRPC's credentials, which ask for the newest files at each connection."""
        import grpc  # type: ignore[import-untyped]

        used = self._pem

        def renewed() -> Any:
            nonlocal used
            self.refresh()
            if self._pem is used:
                return None
            used = self._pem
            return grpc.ssl_server_certificate_configuration([used])

        return grpc.dynamic_ssl_server_credentials(grpc.ssl_server_certificate_configuration([used]), renewed)

    def _use_newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Give a connection that begins the newest certificate; called also if the client names no host."""
        self.refresh()
        connection.context = self._newest

    def _read(self) -> tuple[ssl.SSLContext, tuple[bytes, bytes]]:
        try:
            pem = self._key.read_bytes(), self._certificate.read_bytes()
        except OSError as error:
            raise UsageError(
                f"Cannot read {error.filename}: {error.strerror}. Check --tls-cert, --tls-key and the permissions."
            ) from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._certificate, self._key, password=self._refuse_encrypted)
        except (ssl.SSLError, OSError) as error:
            raise UsageError(
                f"{self._certificate} and {self._key} are not a certificate and its private key in PEM "
                f"({getattr(error, 'reason', None) or error}). Check --tls-cert and --tls-key; the certificate comes "
                "first in its file, then its chain."
            ) from error
        return context, pem

    def _refuse_encrypted(self) -> NoReturn:
        raise UsageError(
            f"{self._key} is encrypted, and nobody could type its password when the server starts. Decrypt it: "
            f"openssl pkey -in {self._key} -out plain.key"
        )
