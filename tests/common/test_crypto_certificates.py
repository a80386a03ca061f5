"""The federation's authority and its server certificates, seen by OpenSSL through Python's ssl module."""

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from common.crypto import certificates
from common.errors import DataError

NOW = 1_800_000_000
DAY = 24 * 3600


@pytest.fixture(scope="module")
def root() -> certificates.Certified:
    return certificates.authority("test federation", now=NOW)


def handshake(folder: Path, server: certificates.Certified, trusted: bytes, name: str) -> None:
    """Raises ssl.SSLError unless a client that trusts `trusted` alone accepts the server under this name."""
    (folder / "c.pem").write_bytes(server.certificate)
    (folder / "k.pem").write_bytes(server.key)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "c.pem", folder / "k.pem")
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    asking.load_verify_locations(cadata=trusted.decode())
    here, there = socket.socketpair()
    here.settimeout(10)
    there.settimeout(10)

    def serve() -> None:
        try:
            serving.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        asking.wrap_socket(here, server_hostname=name).close()
    finally:
        here.close()
        thread.join()


def now() -> int:
    return int(time.time())


@pytest.mark.parametrize("name", ["federation.example.org", "127.0.0.1", "::1"])
def test_a_client_that_trusts_the_authority_accepts_the_server_under_each_of_its_names(
    tmp_path: Path, name: str
) -> None:
    root = certificates.authority("test", now=now())
    server = certificates.server(root, ["federation.example.org", "127.0.0.1", "::1"], now=now())
    handshake(tmp_path, server, root.certificate, name)


@pytest.mark.parametrize("fault", ["name", "authority", "expired", "early", "authority as server"])
def test_a_client_refuses_another_name_authority_or_time(tmp_path: Path, fault: str) -> None:
    root = certificates.authority("test", now=now())
    other = certificates.authority("test", now=now())
    start = {"expired": now() - certificates.SERVER_LIFE - DAY, "early": now() + DAY}.get(fault, now())
    server = certificates.server(root, ["right.example.org"], now=start)
    trusted = other.certificate if fault == "authority" else root.certificate
    served = root if fault == "authority as server" else server
    with pytest.raises(ssl.SSLError):
        handshake(tmp_path, served, trusted, "wrong.example.org" if fault == "name" else "right.example.org")


def test_what_a_certificate_says(root: certificates.Certified) -> None:
    server = certificates.server(root, ["a.example.org", "10.0.0.7"], now=NOW)
    assert certificates.hosts_of(server.certificate) == ("a.example.org", "10.0.0.7")
    assert certificates.hosts_of(root.certificate) == ()
    assert certificates.expires(server.certificate) == NOW + certificates.SERVER_LIFE
    assert certificates.issued_by(server.certificate, root.certificate)
    assert not certificates.issued_by(server.certificate, certificates.authority("x", now=NOW).certificate)
    assert not certificates.issued_by(root.certificate, server.certificate)


def test_renewal_is_due_thirty_days_before_the_end(root: certificates.Certified) -> None:
    server, end = certificates.server(root, ["a.org"], now=NOW), NOW + certificates.SERVER_LIFE
    assert not certificates.renewal_due(server.certificate, now=end - 30 * DAY - 1)
    assert certificates.renewal_due(server.certificate, now=end - 30 * DAY)


def test_no_longer_valid_than_the_authority(root: certificates.Certified) -> None:
    late = NOW + certificates.AUTHORITY_LIFE - DAY
    assert certificates.expires(certificates.server(root, ["a.org"], now=late).certificate) == certificates.expires(
        root.certificate
    )


@pytest.mark.parametrize(
    "host", ["", "A.org", "a..org", "-a.org", "a.org.", "*.a.org", "a b", "1.2.3", "a" * 64 + ".org", "ü.de", "a\n.org"]
)
def test_a_host_that_is_neither_name_nor_address_is_refused(root: certificates.Certified, host: str) -> None:
    with pytest.raises(DataError):
        certificates.server(root, [host], now=NOW)


def test_no_host_is_refused(root: certificates.Certified) -> None:
    with pytest.raises(DataError):
        certificates.server(root, [], now=NOW)


def test_printing_it_shows_no_key(root: certificates.Certified) -> None:
    assert "PRIVATE" not in repr(root) and certificates.fingerprint(root.certificate) in repr(root)


@pytest.mark.parametrize("text", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(text: bytes) -> None:
    with pytest.raises(DataError):
        certificates.expires(text)
