"""Hospitals' networks for the tests: a namespace for each site, cables that are cut and throttled, a line that stalls.

Each site has a namespace of its own whose one cable ends in a bridge; the server listens on the bridge's address. All
names carry this process's number, and all of it is gone at the end. Addresses are of 198.18.0.0/15, which is kept for
tests of networks (RFC 2544, appendix C) and routed nowhere.
"""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from deployed import Federation, ran

from server.__main__ import app as server_app
from server.folder import open_folder

IP, TC = shutil.which("ip"), shutil.which("tc")
MISSING = "" if IP and TC and os.geteuid() == 0 else "root and iproute2 are needed (apt-get install iproute2)"


def command(*words: object) -> str:
    """What a command prints. Raises CalledProcessError."""
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, timeout=30).stdout


@dataclass(frozen=True, kw_only=True)
class Cable:
    """From a site's namespace to the bridge."""

    namespace: str
    near: str  # the bridge's end
    site: str  # address

    @property
    def prefix(self) -> tuple[str, ...]:
        """In front of a command that is to run at the site."""
        return ("ip", "netns", "exec", self.namespace)

    def cut(self) -> None:
        """Nothing comes through, and nobody is told: as when a plug is pulled behind the hospital's router."""
        command("ip", "link", "set", self.near, "down")

    def mend(self) -> None:
        command("ip", "link", "set", self.near, "up")

    def throttle(self, *, up: str, down: str) -> None:
        """Both directions to so much: token buckets, rates as `tc` writes them."""
        bucket = ("root", "tbf", "burst", "64kb", "latency", "200ms", "rate")
        command("ip", "netns", "exec", self.namespace, "tc", "qdisc", "replace", "dev", "up0", *bucket, up)
        command("tc", "qdisc", "replace", "dev", self.near, *bucket, down)

    def free(self) -> None:
        command("ip", "netns", "exec", self.namespace, "tc", "qdisc", "del", "dev", "up0", "root")
        command("tc", "qdisc", "del", "dev", self.near, "root")

    def carried(self) -> tuple[int, int]:
        """Bytes that the site has sent and received, with all their headers."""
        counters = Path("/sys/class/net") / self.near / "statistics"
        return int((counters / "rx_bytes").read_text()), int((counters / "tx_bytes").read_text())


@contextmanager
def cut(cable: Cable) -> Iterator[None]:
    """Cut off while the block goes on, or until the cable is mended in it."""
    cable.cut()
    try:
        yield
    finally:
        cable.mend()


@dataclass(frozen=True, kw_only=True)
class Network:
    """The bridge and its cables."""

    address: str  # of the server
    cables: tuple[Cable, ...]


@contextmanager
def network(sites: int) -> Iterator[Network]:
    """A bridge and so many sites' namespaces; nothing of it is left."""
    number = os.getpid() % 2**16
    bridge, subnet = f"fwb{number}", f"198.{18 + number // 2**8 % 2}.{number % 2**8}"
    cables = [
        Cable(namespace=f"fw{number}-{site}", near=f"fw{number}v{site}", site=f"{subnet}.{site + 2}")
        for site in range(sites)
    ]
    made = Network(address=f"{subnet}.1", cables=tuple(cables))
    try:
        command("ip", "link", "add", bridge, "type", "bridge")
        command("ip", "address", "add", f"{made.address}/24", "dev", bridge)
        command("ip", "link", "set", bridge, "up")
        for cable in cables:
            command("ip", "netns", "add", cable.namespace)
            peer = ("type", "veth", "peer", "name", "up0", "netns", cable.namespace)
            command("ip", "link", "add", cable.near, *peer)
            command("ip", "link", "set", cable.near, "master", bridge, "up")
            inside = ("ip", "-n", cable.namespace)
            command(*inside, "address", "add", f"{cable.site}/24", "dev", "up0")
            command(*inside, "link", "set", "up0", "up")
            command(*inside, "link", "set", "lo", "up")
        yield made
    finally:
        for cable in cables:
            with suppress(subprocess.CalledProcessError):
                command("ip", "netns", "del", cable.namespace)
            with suppress(subprocess.CalledProcessError):  # where the namespace was never made
                command("ip", "link", "del", cable.near)
        with suppress(subprocess.CalledProcessError):
            command("ip", "link", "del", bridge)


@dataclass(kw_only=True)
class Line:
    """A bad line to the server: passes bytes on in both directions, late, not at all for a while, or hangs up.

    `delay`     seconds by which each piece is late
    `stalled`   while set, no byte is passed on
    `tapped`    what comes from the site's side is kept in here, where there is one
    """

    port: int
    delay: float = 0.0
    stalled: threading.Event = field(default_factory=threading.Event)
    tapped: bytearray | None = None
    resets: int = 0
    _open: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> int:
        """Hang up on all connections, with a reset and not in order; how many."""
        with self._lock:
            chosen = list(self._open)
        for one in chosen:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                one.shutdown(socket.SHUT_RD)  # wakes who reads; its close then resets
        self.resets += len(chosen)
        return len(chosen)

    def _carry(self, one: socket.socket, other: socket.socket, *, near: bool) -> None:
        try:
            while data := one.recv(2**16):
                while self.stalled.is_set():
                    time.sleep(0.05)
                if near and self.delay:
                    time.sleep(self.delay)
                if near and self.tapped is not None:
                    self.tapped += data
                other.sendall(data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {one, other}
            for end in (one, other):
                with suppress(OSError):
                    end.close()

    def _accept(self, listening: socket.socket, server: tuple[str, int]) -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(server, timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(
                    target=self._carry, args=(one, other), kwargs={"near": one is near}, daemon=True
                ).start()

    @classmethod
    @contextmanager
    def to(cls, address: str, port: int) -> Iterator[Self]:
        """A line that ends at the server's port, and begins at another port of the same address."""
        with socket.create_server((address, 0)) as listening:
            made = cls(port=listening.getsockname()[1])
            threading.Thread(target=made._accept, args=(listening, (address, port)), daemon=True).start()
            try:
                yield made
            finally:
                made.stalled.clear()
                listening.shutdown(socket.SHUT_RDWR)
                made.reset()


def move(federation: Federation, address: str, ports: Mapping[Path, int]) -> None:
    """Enrolled on loopback, from now on open on another address, where each site looks for a port of its own."""
    path = federation.folder.path
    settings = (path / "federation.toml").read_text(encoding="utf-8")
    (path / "federation.toml").write_text(settings.replace("127.0.0.1", address), encoding="utf-8")
    ran(server_app, "renew", "--keys", federation.base / "keys", "--folder", path)
    before, federation.folder = federation.folder, open_folder(path)
    for site, port in ports.items():
        file = site / "supernode" / "supernode.toml"
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(f"localhost:{before.port}", f"{address}:{port}"), encoding="utf-8")


def in_order(found: Sequence[int]) -> bool:
    """Whether these are 1, 2, 3 …"""
    return list(found) == list(range(1, len(found) + 1))
