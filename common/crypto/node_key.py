"""The key by which Flower knows a site's SuperNode: elliptic curve P-384 in OpenSSH's forms.

It opens the server's Fleet API and says nothing about who wrote a message: for that a site has its identity.
"""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import MessageError

_LIMIT = 1024  # characters of a public key's line


def generate() -> tuple[bytes, str]:
    """A new private key as an OpenSSH file, and its public key as one line without comment."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return private, _line(key.public_key())


def line_of(private: bytes) -> str:
    """The public key of a private one, as `generate` writes both. Raises MessageError for what is none."""
    try:
        key = serialization.load_ssh_private_key(private, None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MessageError("a SuperNode key that is no OpenSSH private key: refused") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise MessageError("a SuperNode key that is no P-384 key: refused")
    return _line(key.public_key())


def public_pem(line: str) -> bytes:
    """The same public key as Flower writes it in a request's header.

    Raises MessageError unless `line` is exactly what `generate` writes for a P-384 key.
    """
    return _load(line).public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def signed(line: str, message: bytes, signature: bytes) -> bool:
    """Whether the holder of the key signed this message (ECDSA with SHA-256, as Flower signs a request's time)."""
    try:
        _load(line).verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _load(line: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(line[: _LIMIT + 1].encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MessageError("a SuperNode key that is no OpenSSH public key: refused") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1) or _line(key) != line:
        raise MessageError("a SuperNode key that is not one line with a P-384 key: refused")
    return key


def _line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")
