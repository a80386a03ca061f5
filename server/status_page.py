"""A page on loopback that shows the run as it goes: rounds as they close, curves, who is absent and why. Read-only.

The page asks for itself every other second and, when the run's log has grown, puts the new parts in the place of the
old ones. Its one script is this file's own, allowed by its digest; what it puts in was escaped by the same template as
a report, and no script in it would run.
"""

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common import page
from common.errors import FederationError, RunError
from common.page import Section
from server import live
from server.events import effective, read
from server.folder import Folder
from server.run_record import current

_WAIT = 10.0  # seconds for a request
_SCRIPT = """
(() => {
  let mark = "", since = 0, state = "";
  const strip = document.createElement("p"), style = document.createElement("style");
  strip.setAttribute("role", "status");
  strip.id = "live";
  document.querySelector("header").after(strip);
  const take = (from) => {
    const said = from.querySelector("meta[name=live]");
    state = said.content;
    since = Number(said.dataset.since) * 1000;
  };
  const ago = (ms) => {
    const s = Math.max(0, Math.round(ms / 1000)), two = (n) => String(n).padStart(2, "0");
    return `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
  };
  const tick = (away) => {
    strip.className = away ? "away" : document.querySelector("meta[name=live]").dataset.on;
    strip.textContent = away ? "The server does not answer; this is what it showed last."
      : since ? `${state}, since ${ago(Date.now() - since)}` : state;
  };
  let away = false;
  const look = async () => {
    try {
      const answer = await fetch("/", { headers: mark ? { "If-None-Match": mark } : {}, cache: "no-store" });
      if (answer.status === 200) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        const open = [...document.querySelectorAll("details")].map((d) => d.open);
        for (const part of ["header", "nav", "main", "footer", "meta[name=live]"])
          document.querySelector(part).replaceWith(fresh.querySelector(part));
        document.querySelectorAll("details").forEach((d, i) => { d.open = open[i] ?? false; });
        document.querySelector("header").after(strip);
        document.title = fresh.title;
        mark = answer.headers.get("ETag");
        take(document);
      }
      away = false;
    } catch { away = true; }
    tick(away);
  };
  take(document);
  tick(false);
  setInterval(() => tick(away), 1000);
  setInterval(look, 2000);
  look();
})();
"""
_STYLE = """
#live { max-width: 68rem; margin: 1.25rem auto 0; padding: 0 1.5rem; font-variant-numeric: tabular-nums; }
#live::before { content: ""; display: inline-block; width: .7rem; height: .7rem; margin-right: .6rem;
  border-radius: 50%; background: var(--grey); }
#live.on::before { background: var(--teal); animation: beat 2s ease-in-out infinite; }
#live.stopped::before, #live.away::before { background: var(--orange); }
@keyframes beat { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { #live.on::before { animation: none; } }
@media (max-width: 36rem) { #live { padding: 0 1rem; } }
"""
_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_STATIC = "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"  # as common/page.html has it
_POLICY = f"{_STATIC} script-src 'sha256-{_DIGEST}'; connect-src 'self';"


@contextmanager
def served(folder: Folder) -> Iterator[None]:
    """The page at http://127.0.0.1:PORT/ as long as the block runs. Raises RunError where the port can't be had."""
    pages = _Pages(folder)
    known = {f"{name}:{folder.page}" for name in ("127.0.0.1", "localhost")}  # no other site's page asks in our name

    class Handler(BaseHTTPRequestHandler):
        timeout = _WAIT

        def do_GET(self) -> None:
            if self.path != "/" or self.headers.get("Host", "") not in known:
                self.send_error(404)
                return
            body = pages.now().encode()
            mark = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            if self.headers.get("If-None-Match") == mark:
                self.send_response(304)
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", mark)
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", f"{_POLICY} frame-ancestors 'none'")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Nothing is logged."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", folder.page), Handler)
    except OSError as error:
        raise RunError(f"127.0.0.1:{folder.page}: the status page can't be served ({error.strerror})") from error
    with server:
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
            try:
                run = current(self._folder)
            except RunError as error:
                return _plain(self._folder, str(error))
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
        sections, (state, since) = live.sections(events), live.state(events)
    except FederationError as error:
        return _plain(folder, f"The run can't be shown: {error}")
    started = effective(events)[0]
    on = state if state in ("finished", "stopped") else "on"
    footer = (
        f"Federation {folder.name}. Run {started['run']}, study SHA-256 {started['study_hash']}. Folder {log.parent}."
    )
    title = started["study"]["study"]["name"]
    return _alive(title, "A federated run as it goes.", sections, footer, state=state, since=since, on=on)


def _plain(folder: Folder, text: str) -> str:
    footer = f"Federation {folder.name}."
    return _alive(folder.name, "A federation's server.", live.waiting(text), footer, state="no run", since=0, on="")


def _alive(
    title: str, subtitle: str, sections: list[Section], footer: str, *, state: str, since: float, on: str
) -> str:
    """A page of the report's kind that keeps itself up to date."""
    text = page.render(title, subtitle, sections, footer=footer)
    said = f'<meta name="live" content="{escape(state)}" data-since="{since:.0f}" data-on="{escape(on)}">'
    again = '<noscript><meta http-equiv="refresh" content="10"></noscript>'
    if text.count(_STATIC) != 1:
        raise RuntimeError("common/page.html has another content policy than the live page expects")
    head, _, body = text.replace(_STATIC, _POLICY).partition("</head>")
    main, _, end = body.rpartition("</body>")
    return f"{head}{said}{again}<style>{_STYLE}</style></head>{main}<script>{_SCRIPT}</script></body>{end}"
