"""Certificates of a federation: its own authority, and the server's certificate with names, expiry and renewal.

A federation has an authority of its own and no public one: a site trusts the one file that came with its roster, and
nothing else that its machine trusts. The authority's key signs a certificate once a year and otherwise lies where the
roster key lies, off the server.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import DataError

AUTHORITY_LIFE = 10 * 365 * 24 * 3600  # seconds
SERVER_LIFE = 365 * 24 * 3600
RENEW_BEFORE = 30 * 24 * 3600  # seconds of life left from which on `renewal_due`
BACKDATED = 3600  # seconds before now from which a certificate holds: clocks of sites that are a little behind

_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True, kw_only=True)
class Certified:
    """A certificate and its private key, both PEM. Guarantees: printing it shows no key."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Certified({fingerprint(self.certificate)})"


def authority(name: str, *, now: int) -> Certified:
    """A federation's own authority: its certificate signs servers' and nothing above them.

    `now`: seconds since 1970.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(subject, subject, key.public_key(), now=now, life=AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return _certified(certificate, key)


def server(by: Certified, hosts: Sequence[str], *, now: int, life: int = SERVER_LIFE) -> Certified:
    """A certificate for a server that is reached under these host names and addresses, with a new key.

    Guarantees: no longer valid than the authority. Raises DataError for no host, or one that is neither.
    """
    if not hosts:
        raise DataError("a server certificate needs a host name or an address: name the one that the sites connect to")
    root, root_key = _load(by.certificate), _load_key(by.key)
    names = [_name(host) for host in hosts]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    left = int(root.not_valid_after_utc.timestamp()) - now
    certificate = (
        _builder(subject, root.subject, key.public_key(), now=now, life=min(life, left))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA384())
    )
    return _certified(certificate, key)


def fingerprint(certificate: bytes) -> str:
    """The first 160 bits of the SHA-256 of a PEM certificate, in groups of four digits, to compare by eye."""
    digits = _load(certificate).fingerprint(hashes.SHA256())[:20].hex()
    return " ".join(digits[i : i + 4] for i in range(0, 40, 4))


def expires(certificate: bytes) -> int:
    """Seconds since 1970 from which on the certificate holds no more. Raises DataError for what is none."""
    return int(_load(certificate).not_valid_after_utc.timestamp())


def renewal_due(certificate: bytes, *, now: int) -> bool:
    """Whether less than 30 days of life are left."""
    return not now < expires(certificate) - RENEW_BEFORE


def hosts_of(certificate: bytes) -> tuple[str, ...]:
    """The names and addresses that a server certificate is for."""
    try:
        names = _load(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress)))


def issued_by(certificate: bytes, root: bytes) -> bool:
    """Whether `root`, PEM, signed this certificate. Raises DataError for what is none."""
    try:
        _load(certificate).verify_directly_issued_by(_load(root))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if _HOST.fullmatch(host) is None or host.rsplit(".", 1)[-1].isdigit():
        raise DataError(f"{host!r} is neither a host name in lower case nor an address")
    return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, *, now: int, life: int
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(now, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(seconds=BACKDATED))
        .not_valid_after(start + timedelta(seconds=life))
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _certified(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Certified:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certified(certificate=certificate.public_bytes(serialization.Encoding.PEM), key=private)


def _load(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError as error:
        raise DataError("not a certificate in PEM form: take the file that came with the roster") from error


def _load_key(key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise DataError("not a private key in PEM form: restore the authority's key") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise DataError("the authority's key is not an elliptic-curve key: restore the one that `init` made")
    return private
