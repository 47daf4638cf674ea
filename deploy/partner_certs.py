"""A certificate authority for trying the partner host on one machine: `make partner-certs`. Never for production.

    python -m deploy.partner_certs                     the authority, the server's certificate, and one partner's, `acme`
    python -m deploy.partner_certs acme-next           one more certificate for a partner
    python -m deploy.partner_certs --revoke acme       put a certificate on the revocation list

Everything lies in var/partner-certs (HPTS_TLS_DIRECTORY names another place): ca.crt is what clients trust, partners-ca.crt
what the partner host trusts, partners.crl whom it no longer does. What is there already is kept.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hpts import embedded

DAY = timedelta(days=1)
SERVER_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())

    def write(self, directory: Path, name: str) -> None:
        embedded.write_private(directory / f"{name}.key", self.key_pem.decode())
        (directory / f"{name}.crt").write_bytes(self.pem)

    @classmethod
    def read(cls, directory: Path, name: str) -> Pair:
        certificate = x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes())
        key = serialization.load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(certificate, key)


def issue(
    name: str,
    authority: Pair | None = None,
    *,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    names: tuple[str, ...] = (),
    begins: datetime | None = None,
    ends: datetime | None = None,
    is_authority: bool = False,
) -> Pair:
    """A new key with its certificate, signed by an authority or, without one, by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begins = begins or datetime.now(UTC) - DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends or begins + 398 * DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(_key_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(each) for each in names]), critical=False)
    return Pair(builder.sign(authority.key if authority else key, hashes.SHA256()), key)


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def revocation_list(authority: Pair, revoked: list[int]) -> bytes:
    """The authority's list of serial numbers, PEM."""
    now = datetime.now(UTC) - DAY
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now)
        .next_update(now + 366 * DAY)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def directory() -> Path:
    return Path(os.environ.get("HPTS_TLS_DIRECTORY") or embedded.state_directory() / "partner-certs")


def prepare(where: Path) -> None:
    """The two authorities, the server's certificate and an empty revocation list, unless they are there."""
    where.mkdir(parents=True, exist_ok=True)
    if (where / "server.crt").exists():
        return
    authority = issue("HPTS development servers", is_authority=True, ends=datetime.now(UTC) + 3650 * DAY)
    authority.write(where, "ca")
    partners = issue("HPTS development partners", is_authority=True, ends=datetime.now(UTC) + 3650 * DAY)
    partners.write(where, "partners-ca")
    (where / "partners.crl").write_bytes(revocation_list(partners, []))
    extra = tuple(os.environ[name] for name in ("HPTS_PUBLIC_NAME", "HPTS_PARTNER_NAME") if name in os.environ)
    names = tuple(dict.fromkeys((*SERVER_NAMES, *extra)))
    issue("HPTS development server", authority, usage=ExtendedKeyUsageOID.SERVER_AUTH, names=names).write(
        where, "server"
    )


def revoke(where: Path, name: str) -> None:
    listed = x509.load_pem_x509_crl((where / "partners.crl").read_bytes())
    serials = {entry.serial_number for entry in listed} | {Pair.read(where, name).certificate.serial_number}
    (where / "partners.crl").write_bytes(revocation_list(Pair.read(where, "partners-ca"), sorted(serials)))


def main() -> None:
    parser = argparse.ArgumentParser(description="A development authority for the partner host.")
    parser.add_argument("name", nargs="?", default="acme", help="whose certificate; default acme")
    parser.add_argument("--revoke", action="store_true", help="put it on the revocation list instead of making it")
    arguments = parser.parse_args()
    where = directory()
    prepare(where)
    if arguments.revoke:
        revoke(where, arguments.name)
        print(f"{arguments.name} is on {where / 'partners.crl'}; start `make partner-host` again.")
        return
    if not (where / f"{arguments.name}.crt").exists():
        issue(arguments.name, Pair.read(where, "partners-ca")).write(where, arguments.name)
    print(f"Certificate {where / f'{arguments.name}.crt'}, key {where / f'{arguments.name}.key'}")


if __name__ == "__main__":
    main()
