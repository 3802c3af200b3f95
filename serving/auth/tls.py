"""TLS of a gRPC server, with certificates that are reloaded when their files change."""

import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
from cryptography import x509

from serving.auth.file_watcher import FileWatcher
from serving.observability.metrics import CERTIFICATE_EXPIRY_S
from vision.errors import ListingVisionError

__all__ = ["ServerTls"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """A server's certificate; with `client_ca` callers must have one too, signed by it (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def create_credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the files: a new certificate is used from the next connection on.

        A certificate that cannot be used, incomplete or of another key, is logged, and the old one stays. One that has
        expired or is not valid yet is used with a warning: callers refuse it, unless their clock is the wrong one.

        Raises:
            ListingVisionError: the first one cannot be used.
        """
        watcher = FileWatcher(*(path for path in (self.certificate, self.key, self.client_ca) if path))
        try:
            first = self._load_configuration()
        except (OSError, ValueError) as error:
            raise ListingVisionError(
                f"TLS certificate {self.certificate} with key {self.key} cannot be used: {error}"
            ) from error

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            if not watcher.has_changed():
                return None
            try:
                found = self._load_configuration()
            except (OSError, ValueError) as error:
                _log.warning("TLS certificate %s cannot be used, the old one stays: %s", self.certificate, error)
                return None
            _log.info("TLS certificate %s was reloaded", self.certificate)
            return found

        # The stubs do not know that None means unchanged.
        return grpc.dynamic_ssl_server_credentials(
            first, cast(Any, fetch), require_client_authentication=bool(self.client_ca)
        )

    def _load_configuration(self) -> grpc.ServerCertificateConfiguration:
        # Raises if they are not a certificate and its key.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        client_ca = None
        if self.client_ca:
            context.load_verify_locations(self.client_ca)
            client_ca = self.client_ca.read_bytes()
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        self._check_validity(x509.load_pem_x509_certificates(pair[1]))
        return grpc.ssl_server_certificate_configuration([pair], client_ca)

    def _check_validity(self, chain: list[x509.Certificate]) -> None:
        """Export when the first certificate of the chain expires; warn where one is not valid now."""
        begins = max(certificate.not_valid_before_utc for certificate in chain)
        ends = min(certificate.not_valid_after_utc for certificate in chain)
        CERTIFICATE_EXPIRY_S.labels("server").set(ends.timestamp())
        now = datetime.now(UTC)
        if ends <= now:
            _log.warning("TLS certificate %s has expired (%s): callers refuse it; renew it", self.certificate, ends)
        elif begins > now:
            _log.warning("TLS certificate %s is not valid before %s: callers refuse it", self.certificate, begins)
