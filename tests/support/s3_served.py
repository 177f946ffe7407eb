"""The gateway under its own web server, as an operator would start it: plainly, or over TLS with a certificate that only the test knows."""

import contextlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from portal.catalogue import build_registry
from portal.identity.s3_keys import s3_key_create
from portal.kernel.db import open_database
from portal.settings import Settings
from tests.support.databases import fill, settings_for
from tests.support.people import People
from tests.support.processes import portal_process
from tests.support.s3 import client
from tests.support.servers import answers, free_port, until


@dataclass(frozen=True)
class Served:
    """Where a gateway is, an administrator's key for it, and the file with the certificate that it shows."""

    scheme: str
    settings: Settings
    key_id: str
    secret: str
    ca_file: Path | None

    @property
    def host(self) -> str:
        """Name and port, as clients are told it."""
        return f"localhost:{self.settings.s3_port}"

    @property
    def url(self) -> str:
        """The address of the service."""
        return f"{self.scheme}://{self.host}"

    def boto(self, **config: Any) -> Any:
        """boto3 for it."""
        return client(self.url, self.key_id, self.secret, verify=str(self.ca_file) if self.ca_file else None, **config)


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of loopback that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    moment = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.DNSName("*.localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(moment - timedelta(hours=1)).not_valid_after(moment + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    cert, secret = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return cert, secret


@contextlib.contextmanager
def served_gateway(directory: Path, scheme: str, **overrides: object) -> Iterator[Served]:
    """A gateway for the length of a block."""
    url = f"sqlite:///{directory}/portal.db"
    fill(url, directory)
    cert, key = certificate(directory) if scheme == "https" else (None, None)
    tls = {"s3_tls_cert": str(cert), "s3_tls_key": str(key)} if cert else {}
    settings = settings_for(
        directory / "var", database_url=url, s3_port=free_port(), s3_domain="localhost", engine_compute="none", log_level="error", **tls, **overrides
    )
    sessions = open_database(settings)
    people = People(sessions, settings, build_registry())
    secret, row = s3_key_create(people.context(people.admin()), people.admin())
    people.close()
    with portal_process(settings, "s3"):
        until(lambda: answers(settings.s3_port), within_s=60, what="the gateway answers")
        yield Served(scheme, settings, row.id, secret, cert)
    sessions.kw["bind"].dispose()
