"""What is said where the port of the SuperLink is somebody else's, or nobody's, and of what will expire."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from common.errors import RunError
from server import folder, status_cli
from server.control import Control
from simulations.loopback import free_ports


def made(path: Path, port: int) -> folder.Folder:
    values = {
        "name": "federation",
        "hosts": ["localhost"],
        "listen": "127.0.0.1",
        "port": port,
        "colluding": 0,
        "min_sites": 2,
        "loopback": port + 1,
    }
    return folder.found(path, path.with_suffix(".keys"), values=values, now=int(time.time()))


@contextmanager
def tls_at(at: folder.Folder) -> Iterator[None]:
    """A server with this folder's certificate on its SuperLink's port, that knows no path."""
    host, port = at.superlink.split(":")
    server = HTTPServer((host, int(port)), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*at.tls("loopback"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_another_federations_superlink_on_the_same_port_is_told_from_none(tmp_path: Path) -> None:
    port = free_ports(4)
    own, other = made(tmp_path / "own", port), made(tmp_path / "other", port)
    with closing(Control(own)) as control:
        with pytest.raises(RunError, match="does not answer: is `server up` running"):
            control.status(1)
        with tls_at(other), pytest.raises(RunError, match="another federation's, or its certificate has expired"):
            control.status(1)
        with tls_at(own), pytest.raises(RunError, match="the SuperLink refuses"):
            control.status(1)


@pytest.mark.parametrize(
    ("years", "said"),
    [(0.5, []), (0.95, ["renew", "renew"]), (9.95, ["make another federation", "renew", "renew"])],
)
def test_what_expires_is_said_with_what_helps(
    tmp_path: Path, years: float, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, later = made(tmp_path / "own", free_ports(4)), time.time() + years * 365 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    found = status_cli.warnings(own, None)
    assert len(found) == len(said) and all(word in line for word, line in zip(said, found, strict=True))
