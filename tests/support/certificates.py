"""Certificates made for a test, by openssl."""

import subprocess
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization


def run_openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class Authority:
    """Signs certificates for localhost."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.certificate, self._key = folder, folder / f"{name}-ca.pem", folder / f"{name}-ca.key"
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2)
        run_openssl(*new, "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Make a certificate and its key."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extra = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extra.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        run_openssl(*new, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signing = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", 2, "-extfile", extra)
        run_openssl("x509", "-req", "-in", request, *signing, "-out", certificate)
        return certificate, key

    def issue_for(self, name: str, begins: datetime, ends: datetime) -> tuple[Path, Path]:
        """Make a certificate that is valid for that time, and its key."""
        certificate, key = self.issue(name)
        issued = x509.load_pem_x509_certificate(certificate.read_bytes())
        builder = x509.CertificateBuilder(
            issuer_name=issued.issuer,
            subject_name=issued.subject,
            public_key=issued.public_key(),
            serial_number=issued.serial_number,
            not_valid_before=begins,
            not_valid_after=ends,
            extensions=list(issued.extensions),
        )
        signing_key = serialization.load_pem_private_key(self._key.read_bytes(), password=None)
        signed = builder.sign(signing_key, hashes.SHA256())
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return certificate, key
