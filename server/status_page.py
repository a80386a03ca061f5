"""A page on loopback that shows the run as it goes: rounds as they close, curves, who is absent and why. Read-only."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common import page
from common.errors import FederationError
from common.page import Note, Section
from server import report
from server.events import effective, read, summary
from server.folder import Folder
from server.run_record import current

_REFRESH = "10"  # seconds after which a browser asks again; nothing in the page runs
_WAIT = 10.0  # seconds for a request


@contextmanager
def served(folder: Folder) -> Iterator[None]:
    """The page at http://127.0.0.1:PORT/ as long as the block runs."""
    pages = _Pages(folder)
    known = {f"{name}:{folder.page}" for name in ("127.0.0.1", "localhost")}  # no other site's page asks in our name

    class Handler(BaseHTTPRequestHandler):
        timeout = _WAIT

        def do_GET(self) -> None:
            if self.path != "/" or self.headers.get("Host", "") not in known:
                self.send_error(404)
                return
            body = pages.now().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Refresh", _REFRESH)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Nothing is logged."""

    with ThreadingHTTPServer(("127.0.0.1", folder.page), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="status page", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _Pages:
    """The page, made again when the run's log has grown."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._made: tuple[object, str] = (None, "")

    def now(self) -> str:
        with self._lock:
            run = current(self._folder)
            log = None if run is None else Path(run.out) / "events.jsonl"
            seen = (str(log), log.stat().st_size if log is not None and log.exists() else -1)
            if self._made[0] != seen:
                self._made = (seen, _page(self._folder, None if log is None or seen[1] < 1 else log))
            return self._made[1]


def _page(folder: Folder, log: Path | None) -> str:
    if log is None:
        return _plain(folder, "No run has begun yet.")
    try:
        events = read(log)
        sections = report.sections(summary(events), events)
    except FederationError as error:
        return _plain(folder, f"The run can't be shown: {error}")
    name = effective(events)[0]["study"]["study"]["name"]
    return page.render(name, "A federated run as it goes.", sections, footer=f"Federation {folder.name}.")


def _plain(folder: Folder, text: str) -> str:
    section = Section(title="Run", lead="", blocks=(Note(text=text),))
    return page.render(folder.name, "A federation's server.", [section], footer=f"Federation {folder.name}.")
