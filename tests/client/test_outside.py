"""The preflight's look at the world outside: through a proxy, past a clock that is off, at a server that is another."""

import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path

import pytest
from proxy import HOST, Proxy, listening

from client import executors, outside, supernode
from client.finding import Finding
from client.surroundings import Outside, judged
from common.crypto import certificates
from common.crypto.certificates import Certified

NOW = int(time.time())


def tls_of(made: Certified, folder: Path, name: str) -> ssl.SSLContext:
    (folder / f"{name}.pem").write_bytes(made.certificate)
    (folder / f"{name}.key").write_bytes(made.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


@contextmanager
def server(tls: ssl.SSLContext, *, ahead: float = 0.0, date: bool = True) -> Iterator[int]:
    """What the gate answers to a stranger. `ahead`: seconds by which a site's clock is ahead of this one."""

    def talk(peer: socket.socket) -> None:
        with suppress(OSError), tls.wrap_socket(peer, server_side=True) as stream:
            stream.recv(4096)
            said = f"date: {formatdate(time.time() - ahead, usegmt=True)}\r\n" if date else ""
            stream.sendall(f"HTTP/1.1 404 x\r\ncontent-length: 0\r\nconnection: close\r\n{said}\r\n".encode())

    with listening(talk) as port:
        yield port


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "PAUSE", 0.05)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


AUTHORITY = certificates.authority("test", now=NOW)


def joined(folder: Path, where: str, *, root: bytes = AUTHORITY.certificate) -> Path:
    half = folder / "site" / "supernode"
    half.mkdir(parents=True)
    (half / "server-ca.pem").write_bytes(root)
    (half / "executor.secret").write_bytes(b"s" * 32)
    settings = supernode.toml(server=where, runtime="127.0.0.1:1", health="127.0.0.1:2")
    (half / "supernode.toml").write_text(settings)
    return folder / "site"


def found(site: Path) -> dict[str, Finding]:
    lines = judged(outside.look(site), now=time.time())
    assert not any("\n" in line.text for line in lines)
    return {line.about: line for line in lines}


@pytest.mark.parametrize(("ahead", "level"), [(0.0, "PASS"), (4.5, "FAIL"), (86400.0, "FAIL"), (-7200.0, "WARN")])
def test_the_clock_is_compared_with_the_servers(tmp_path: Path, ahead: float, level: str) -> None:
    tls = tls_of(certificates.server(AUTHORITY, ["127.0.0.1"], now=NOW), tmp_path, "gate")
    with server(tls, ahead=ahead) as port:
        lines = found(joined(tmp_path, f"127.0.0.1:{port}"))
    assert (lines["connection"].level, lines["clock"].level) == ("PASS", level)
    assert lines["certificate"].text == "server: good for 365 more days"


def test_the_clocks_figure_is_right_within_a_second(tmp_path: Path) -> None:
    tls = tls_of(certificates.server(AUTHORITY, ["127.0.0.1"], now=NOW), tmp_path, "gate")
    with server(tls, ahead=2.0) as port:
        seen = outside.look(joined(tmp_path, f"127.0.0.1:{port}"))
    assert seen.clock_ahead is not None and abs(seen.clock_ahead - 2.0) <= 1.0


def test_a_clock_that_is_off_by_a_day_is_named_though_no_certificate_is_valid(tmp_path: Path) -> None:
    """The certificate is younger than this machine's clock says it can be: TLS fails, and the reason is the clock."""
    made = certificates.server(AUTHORITY, ["127.0.0.1"], now=NOW + 86400)
    with server(tls_of(made, tmp_path, "gate"), ahead=-86400) as port:
        lines = found(joined(tmp_path, f"127.0.0.1:{port}"))
    assert lines["connection"].level == "FAIL" and "not yet valid by this machine's clock" in lines["connection"].text
    assert lines["clock"].level == "WARN" and "86400" in lines["clock"].text.replace("86399", "86400")


def test_a_server_without_its_time_is_a_warning(tmp_path: Path) -> None:
    tls = tls_of(certificates.server(AUTHORITY, ["127.0.0.1"], now=NOW), tmp_path, "gate")
    with server(tls, date=False) as port:
        assert found(joined(tmp_path, f"127.0.0.1:{port}"))["clock"].level == "WARN"


def test_another_authoritys_server_is_not_believed(tmp_path: Path) -> None:
    other = certificates.authority("other", now=NOW)
    with server(tls_of(certificates.server(other, ["127.0.0.1"], now=NOW), tmp_path, "gate")) as port:
        line = found(joined(tmp_path, f"127.0.0.1:{port}"))["connection"]
    assert line.level == "FAIL" and "not by the federation's authority" in line.text and "--proxy-ca" in line.text


def test_another_name_is_not_believed(tmp_path: Path) -> None:
    tls = tls_of(certificates.server(AUTHORITY, ["elsewhere.test"], now=NOW), tmp_path, "gate")
    with server(tls) as port:
        line = found(joined(tmp_path, f"127.0.0.1:{port}"))["connection"]
    assert line.level == "FAIL" and "for another name" in line.text


def test_a_server_that_is_away_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    line = found(joined(tmp_path, f"127.0.0.1:{port}"))["connection"]
    assert line.level == "FAIL" and "can't be reached" in line.text and f"127.0.0.1:{port}" in line.text


def test_the_server_is_reached_through_the_hospitals_proxy_and_loopback_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = tls_of(certificates.server(AUTHORITY, [HOST, "127.0.0.1"], now=NOW), tmp_path, "gate")
    proxy = Proxy()
    with server(tls) as port, listening(proxy.talk) as door:
        proxy.to = port
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{door}")
        line = found(joined(tmp_path, f"{HOST}:{port}"))["connection"]
        assert line.level == "PASS" and line.text.endswith(f"through the proxy 127.0.0.1:{door}")
        assert set(proxy.asked) == {f"CONNECT {HOST}:{port} HTTP/1.1"}
        proxy.asked.clear()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        (tmp_path / "direct").mkdir()
        assert found(joined(tmp_path / "direct", f"127.0.0.1:{port}"))["connection"].text == "the server answers"
        assert proxy.asked == []


def test_a_proxy_that_refuses_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(refuses=True)
    with listening(proxy.talk) as door:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{door}")
        line = found(joined(tmp_path, f"{HOST}:9092"))["connection"]
    assert line.level == "FAIL" and "refuses (403 Forbidden)" in line.text and "CONNECT to" in line.text
    assert "secret" not in line.text


def test_a_proxy_that_opens_tls_is_believed_by_the_hospitals_own_authority(tmp_path: Path) -> None:
    """As `client join --proxy-ca` writes it: the federation's authority first, then the proxy's."""
    opens = certificates.authority("the hospital's proxy", now=NOW)
    both = AUTHORITY.certificate + b"\n" + opens.certificate
    with server(tls_of(certificates.server(opens, ["127.0.0.1"], now=NOW), tmp_path, "gate")) as port:
        assert found(joined(tmp_path, f"127.0.0.1:{port}", root=both))["connection"].level == "PASS"


def test_a_site_that_has_not_joined_is_asked_nothing(tmp_path: Path) -> None:
    assert outside.look(tmp_path) == Outside()
    assert outside.look(joined(tmp_path, "")) == Outside(executors=())


def process(proc: Path, number: int, *words: str) -> None:
    (proc / str(number)).mkdir(parents=True)
    (proc / str(number) / "cmdline").write_bytes(b"\0".join(word.encode() for word in words) + b"\0")


def test_an_executor_with_this_sites_secret_is_found(tmp_path: Path) -> None:
    site, proc = joined(tmp_path, ""), tmp_path / "proc"
    secret, copy = site / "supernode" / "executor.secret", tmp_path / "copy"
    copy.write_bytes(secret.read_bytes())
    (tmp_path / "other").write_bytes(b"o" * 32)
    flag = "--superexec-auth-secret-file"
    process(proc, 10, sys.executable, "-m", "common.processes", "0", "flower-supernode", f"{flag}={secret}")
    process(proc, 11, sys.executable, "/bin/flower-superexec", "--insecure", f"{flag}={secret}")
    process(proc, 12, sys.executable, "/bin/flower-superexec", flag, str(copy))
    process(proc, 13, sys.executable, "/bin/flower-superexec", f"{flag}={tmp_path / 'other'}")
    process(proc, 14, sys.executable, "-P", "-m", "client.worker", str(site))
    process(proc, 15, sys.executable, "-P", "-m", "client.worker", str(tmp_path / "another"))
    assert executors.strangers(secret, processes=proc) == [11, 12]
    assert executors.workers(site, processes=proc) == [14]


def test_another_executor_fails_the_preflight() -> None:
    (line,) = judged(Outside(executors=(11, 12)), now=NOW)
    assert line.level == "FAIL" and "process 11, 12" in line.text
    (line,) = judged(Outside(executors=()), now=NOW)
    assert line.level == "PASS"
