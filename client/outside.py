"""What the preflight asks of the world beyond the site folder: the server, its certificate, its clock, other executors.

The server is asked as the SuperNode asks it: by the same library, through the same proxy (HTTPS_PROXY, NO_PROXY), on
the word of the same authorities. What is asked says nothing: `GET /`, to which the gate answers 404 with its time.
"""

import contextlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from client import executors
from client.supernode import Connection, open_connection
from client.surroundings import Outside
from common.errors import FederationError

PATIENCE = 10.0  # seconds for the server's answer
SAMPLES, PAUSE = 3, 0.35  # looks at the server's clock, whose answer is in whole seconds; seconds between two
_NOT_YET, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME
_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The server's answer. certificate: PEM; `ahead`: seconds by which this clock is ahead, None where it said no
    time.
    """

    certificate: bytes
    ahead: float | None


def look(site: Path, *, now: Callable[[], float] = time.time, network: bool = True, running: bool = True) -> Outside:
    """What can be seen from here; of the server only where the site has joined a federation, and with `network`.
    `running`: one worker of this site may be at work.

    Never raises for what is wrong out there.
    """
    try:
        connection = open_connection(site)
    except FederationError:
        return Outside()
    mine, foreign = executors.workers(site), executors.strangers(connection.secret)
    found = Outside(executors=(*mine[running:], *foreign))
    if not (network and connection.server):
        return found
    certificates: tuple[tuple[str, bytes], ...] = ()
    with contextlib.suppress(OSError):
        certificates = (("federation's authority", connection.server_root.read_bytes()),)
    try:
        seen = ask(connection, now=now)
    except _Silent as silent:
        return Outside(
            executors=found.executors, certificates=certificates, connection=str(silent), clock_ahead=silent.ahead
        )
    return Outside(
        executors=found.executors,
        certificates=(*certificates, ("server", seen.certificate)),
        connection="",
        clock_ahead=seen.ahead,
        proxy=proxy_of(connection.server),
    )


def ask(connection: Connection, *, now: Callable[[], float] = time.time) -> Seen:
    """Ask the server. Raises _Silent, one line with what to do, where it can't be reached or believed."""
    where = connection.server
    try:
        trust = ssl.create_default_context(cafile=str(connection.server_root))
    except (OSError, ssl.SSLError) as error:
        raise _Silent(f"{connection.server_root}: can't be used ({error}); `client join` writes it again") from error
    try:
        return _samples(where, trust, now)
    except httpx.ProxyError as error:
        raise _Silent(f"the proxy {proxy_of(where)} refuses ({error}): ask for CONNECT to {where}") from error
    except httpx.HTTPError as error:
        fault = _certificate_fault(error)
        if fault is None:
            via = f" through the proxy {proxy_of(where)}" if proxy_of(where) else ""
            why = " ".join(str(error).split()) or type(error).__name__
            raise _Silent(
                f"{where} can't be reached{via} ({why}): is the server up, may this machine go out?"
            ) from error
        if fault.verify_code in (_NOT_YET, _EXPIRED):
            trust.verify_flags |= _NO_CHECK_TIME  # the chain is still verified
            ahead = None
            with contextlib.suppress(httpx.HTTPError):
                ahead = _samples(where, trust, now).ahead
            why = "not yet valid" if fault.verify_code == _NOT_YET else "expired"
            raise _Silent(
                f"{where}: its certificate is {why} by this machine's clock: set the clock, or `server renew` there",
                ahead=ahead,
            ) from error
        if fault.verify_code in _WRONG_NAME:
            text = f"{where}: its certificate is for another name; join with the name that the coordinator gave"
            raise _Silent(text) from error
        raise _Silent(
            f"{where}: its certificate is not by the federation's authority ({fault.verify_message}); where this"
            " hospital's proxy opens TLS, `client join --proxy-ca FILE`"
        ) from error


def proxy_of(server: str) -> str:
    """host:port of the proxy through which `server`, host:port, is reached; "" for none. Never its password."""
    if proxy_bypass(server) or proxy_bypass(server.rpartition(":")[0]):
        return ""
    proxies = getproxies()
    return urlsplit(proxies.get("https", proxies.get("all", ""))).netloc.rpartition("@")[2]


class _Silent(Exception):
    """Why the server's answer can't be had; `ahead` where its time is known all the same."""

    def __init__(self, why: str, *, ahead: float | None = None) -> None:
        super().__init__(why)
        self.ahead = ahead


def _samples(where: str, trust: ssl.SSLContext, now: Callable[[], float]) -> Seen:
    """Several answers, each of which says that this clock is ahead by more than one number and less than another."""
    certificate, least, most = b"", -float("inf"), float("inf")
    for number in range(SAMPLES):
        if number:
            time.sleep(PAUSE)
        with httpx.Client(verify=trust, timeout=PATIENCE) as client:
            before = now()
            with client.stream("GET", f"https://{where}/") as answer:
                after = now()
                stream = answer.extensions["network_stream"].get_extra_info("ssl_object")
                certificate = ssl.DER_cert_to_PEM_cert(stream.getpeercert(True)).encode()
                try:
                    date = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
                except ValueError:
                    return Seen(certificate=certificate, ahead=None)
        least, most = max(least, before - date - 1.0), min(most, after - date)
    return Seen(certificate=certificate, ahead=(least + most) / 2)


def _certificate_fault(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """What the TLS library had against the server's certificate; None where it was something else."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error
