"""A mail server that delivers nothing: it keeps what it is sent, shows it, and fails on command.

    python -m infra.local.mail --port 1025 --web-port 8025 --folder mails

Each mail becomes a file of the folder, `.eml`, as it came. Over HTTP, on this machine:

    GET /                a page with all mails, the newest first, each with its HTML part
    GET /messages        the same as JSON: name, from, to, subject, message_id, received_at
    GET /<name>.eml      one mail as it came; GET /<name>.html: its HTML part
    DELETE /messages     forget them all
    POST /faults         {"fault": "refuse_temporarily", "times": 2}; without `times`: until DELETE /faults
    DELETE /faults       be well again
"""

import argparse
import asyncio
import email
import email.policy
import json
import re
import signal
import ssl
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import jinja2
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

LOOPBACK: Final = "127.0.0.1"
DEFAULT_PORT: Final = 1025
DEFAULT_WEB_PORT: Final = 8025
ENDING: Final = (signal.SIGTERM, signal.SIGINT)
MOST_BODY_BYTES: Final = 64 * 1024  # Of what is posted to the controls.
NO_SCRIPTS: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-popups allow-popups-to-escape-sandbox"
)
"""What a mail may do when it is looked at: less than in any mail program. Its links open beside it."""


class Fault(StrEnum):
    """What goes wrong with a mail, on command."""

    REFUSE_TEMPORARILY = "refuse_temporarily"  # 451 to the recipient: greylisting, a full disk.
    REFUSE_PERMANENTLY = "refuse_permanently"  # 550 to the recipient: there is no such mailbox.
    REFUSE_SENDER = "refuse_sender"  # 550 to the sender: that address is not ours to write from.
    REFUSE_CONTENT = "refuse_content"  # 554 to the message: it is taken for spam.
    CLOSING = "closing"  # 421: the server is about to go down.
    HANG = "hang"  # The message is taken in, and no answer comes.
    LOSE_REPLY = "lose_reply"  # The message is kept, and the connection breaks before that is said.
    DOWN = "down"  # Nobody listens.


@dataclass(frozen=True)
class Kept:
    """One mail that was kept."""

    name: str
    message: EmailMessage
    raw: bytes
    received_at: datetime

    @property
    def html(self) -> str:
        """Return its HTML part."""
        return self._part("html")

    @property
    def text(self) -> str:
        """Return its plain part."""
        return self._part("plain")

    def summary(self) -> dict[str, str]:
        """Return what a list shows of it."""
        return {
            "name": self.name,
            "from": str(self.message["From"]),
            "to": str(self.message["To"]),
            "subject": str(self.message["Subject"]),
            "message_id": str(self.message["Message-ID"]),
            "received_at": self.received_at.isoformat(timespec="seconds"),
        }

    def _part(self, kind: str) -> str:
        part = self.message.get_body(preferencelist=(kind,))
        return "" if part is None else str(part.get_content()).replace("\r\n", "\n")


@dataclass(frozen=True, kw_only=True)
class Secured:
    """How a connection is secured. `tls`: by STARTTLS, or from its beginning. `login`: a user and a password."""

    tls: ssl.SSLContext | None = None
    tls_at_once: bool = False
    login: tuple[str, str] | None = None

    def authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _how: str, data: Any) -> AuthResult:
        """Check a user and a password."""
        good = self.login is not None and (data.login.decode(), data.password.decode()) == self.login
        return AuthResult(success=good, handled=False)  # So that the library says 535.


class MailServer:
    """The server, by `with`. Raises OSError if a port is taken.

    port, web_port: 0 takes free ones; `web_port` None: no web page. secured: how clients prove who they are, and we.
    """

    def __init__(
        self, *, folder: Path, port: int = 0, web_port: int | None = None, secured: "Secured | None" = None
    ) -> None:
        self.folder = folder
        self._secured = secured or Secured()
        self._port = port
        self._web_port = web_port
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._times: int | None = None
        self._well = threading.Event()
        self._smtp: _Listener | None = None
        self._web: _Web | None = None

    def __enter__(self) -> Self:
        """Listen."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._listen()
        if self._web_port is not None:
            self._web = _Web((LOOPBACK, self._web_port), self)
            self._web.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._well.set()
        if self._web is not None:
            self._web.stop()
        self._silence()

    @property
    def port(self) -> int:
        """Return the port of SMTP."""
        return self._port

    @property
    def web_url(self) -> str:
        """Return the address of the web page."""
        assert self._web is not None, "there is a web page"
        return f"http://{LOOPBACK}:{self._web.server_port}"

    def fail(self, fault: Fault, times: int | None = None) -> None:
        """Let this go wrong from now on; `times`: only so often, with what comes next."""
        with self._lock:
            self._fault, self._times = fault, times
            self._well.clear()
        if fault is Fault.DOWN:
            self._silence()

    def heal(self) -> None:
        """Be well again."""
        with self._lock:
            self._fault, self._times = None, None
            self._well.set()
        if self._smtp is None:
            self._listen()

    def kept(self) -> list[Kept]:
        """Return all mails, the oldest first."""
        return [_read(path) for path in sorted(self.folder.glob("*.eml"))]

    def forget(self) -> None:
        """Forget them all."""
        for path in self.folder.glob("*.eml"):
            path.unlink()

    # --- What the handler asks ----------------------------------------------------------------------------------------

    def strikes(self, *faults: Fault) -> Fault | None:
        """Return the fault that befalls this step, if it is one of these; it is used up then."""
        with self._lock:
            if self._fault not in faults or self._times == 0:
                return None
            if self._times is not None:
                self._times -= 1
            return self._fault

    def keep(self, raw: bytes) -> None:
        """Keep a mail."""
        with self._lock:
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"  # In the order in which they came.
            (self.folder / f"{name}.eml").write_bytes(raw)

    async def hang(self) -> None:
        """Return once all is well again."""
        await asyncio.to_thread(self._well.wait)

    def _listen(self) -> None:
        self._smtp = _Listener(self, self._port, self._secured)
        self._port = self._smtp.port  # The same one when it comes back.

    def _silence(self) -> None:
        listener, self._smtp = self._smtp, None
        if listener is not None:
            listener.stop()


class _Listener:
    """Takes mail on a port, on a thread of its own. aiosmtpd's Controller does that, but not on a free port."""

    def __init__(self, office: MailServer, port: int, secured: Secured) -> None:
        self._loop = asyncio.new_event_loop()
        at_once = secured.tls if secured.tls_at_once else None

        def session() -> SMTP:
            return SMTP(
                _Handler(office),
                enable_SMTPUTF8=True,
                tls_context=None if secured.tls_at_once else secured.tls,
                authenticator=secured.authenticate,
                auth_required=secured.login is not None,
                auth_require_tls=not secured.tls_at_once,  # Which the library does not count.
                loop=self._loop,
            )

        try:
            self._server = self._loop.run_until_complete(self._loop.create_server(session, LOOPBACK, port, ssl=at_once))
        except OSError:
            self._loop.close()
            raise
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="mail-smtp", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more, and break off what is under way."""
        asyncio.run_coroutine_threadsafe(self._break_off(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _break_off(self) -> None:
        self._server.close()
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


class _Handler:
    """What happens to a mail."""

    def __init__(self, office: MailServer) -> None:
        self._office = office

    async def handle_MAIL(  # noqa: N802 - the library's names.
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        match self._office.strikes(Fault.REFUSE_SENDER, Fault.CLOSING):
            case Fault.REFUSE_SENDER:
                return f"550 5.7.1 {address} is not yours to write from"
            case Fault.CLOSING:
                return "421 4.3.2 closing"
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 - likewise.
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        match self._office.strikes(Fault.REFUSE_TEMPORARILY, Fault.REFUSE_PERMANENTLY):
            case Fault.REFUSE_TEMPORARILY:
                return f"451 4.7.1 {address}: come again"
            case Fault.REFUSE_PERMANENTLY:
                return f"550 5.1.1 {address}: there is no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - likewise.
        content = envelope.content
        assert isinstance(content, bytes), "it is not decoded for us"
        fault = self._office.strikes(Fault.REFUSE_CONTENT, Fault.HANG, Fault.LOSE_REPLY)
        if fault is Fault.REFUSE_CONTENT:
            return "554 5.7.1 this looks like spam"
        self._office.keep(content)
        if fault is Fault.HANG:
            await self._office.hang()
        if fault is Fault.LOSE_REPLY:
            assert isinstance(server.transport, asyncio.Transport), "it is connected"
            server.transport.abort()
        return "250 OK"


class _Web(ThreadingHTTPServer):
    """The web page and the controls."""

    daemon_threads = True  # A caller that keeps its connection open does not keep the program.
    block_on_close = False

    def __init__(self, address: tuple[str, int], office: MailServer) -> None:
        super().__init__(address, _Pages)
        self.office = office
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="mail-web", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Pages(BaseHTTPRequestHandler):
    server: _Web

    def do_GET(self) -> None:
        """Show mails."""
        office = self.server.office
        wanted = re.fullmatch(r"/(\w+)\.(eml|html)", self.path, re.ASCII)
        if self.path == "/":
            shown = PAGE.render(mails=list(reversed(office.kept())))
            self._send(200, "text/html; charset=utf-8", shown.encode())
        elif self.path == "/messages":
            self._json(200, [kept.summary() for kept in office.kept()])
        elif wanted and (path := office.folder / f"{wanted[1]}.eml").is_file():
            kept = _read(path)
            if wanted[2] == "eml":
                self._send(200, "message/rfc822", kept.raw)
            else:
                self._send(200, "text/html; charset=utf-8", _with_links_outside(kept.html).encode(), policy=NO_SCRIPTS)
        else:
            self._json(404, {"error": "there is nothing here"})

    def do_POST(self) -> None:
        """Let something go wrong."""
        if self.path != "/faults":
            self._json(404, {"error": "post to /faults"})
            return
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), MOST_BODY_BYTES))
        try:
            wanted = json.loads(body)
            fault, times = Fault(wanted["fault"]), wanted.get("times")
            if not (times is None or type(times) is int):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            self._json(400, {"error": f'send {{"fault": ..., "times": ...}}; faults: {", ".join(Fault)}'})
            return
        self.server.office.fail(fault, times)
        self._json(200, {"fault": fault, "times": times})

    def do_DELETE(self) -> None:
        """Forget mails, or be well again."""
        commands = {"/faults": self.server.office.heal, "/messages": self.server.office.forget}
        if self.path not in commands:
            self._json(404, {"error": "delete /faults or /messages"})
            return
        commands[self.path]()
        self._json(200, {})

    def _json(self, status: int, content: Any) -> None:
        self._send(status, "application/json", json.dumps(content, indent=2).encode() + b"\n")

    def _send(self, status: int, content_type: str, body: bytes, *, policy: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if policy is not None:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: it is no news that somebody looked."""


def _with_links_outside(html: str) -> str:
    return html.replace("<head>", '<head><base target="_blank">', 1)


def _read(path: Path) -> Kept:
    raw = path.read_bytes()
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage), "the default policy makes these"
    return Kept(path.stem, message, raw, datetime.fromtimestamp(path.stat().st_mtime, UTC))


PAGE: Final = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mail caught on this machine</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }
details { border: 1px solid #8886; border-radius: 8px; margin: 0 0 1rem; }
summary { padding: .75rem 1rem; cursor: pointer; }
summary span { display: block; opacity: .75; font-size: .875rem; }
iframe { width: 100%; height: 44rem; border: 0; border-top: 1px solid #8886; background: #fff; }
p.raw { margin: 0; padding: .5rem 1rem; font-size: .875rem; }
</style>
<h1>Mail caught on this machine</h1>
{% for mail in mails %}
<details{{ " open" if loop.first }}>
<summary><b>{{ mail.message["Subject"] }}</b>
<span>to {{ mail.message["To"] }}, {{ mail.received_at.strftime("%Y-%m-%d %H:%M:%S UTC") }}</span></summary>
<iframe sandbox="allow-popups allow-popups-to-escape-sandbox" loading="lazy" src="/{{ mail.name }}.html"
 title="{{ mail.message["Subject"] }}"></iframe>
<p class="raw"><a href="/{{ mail.name }}.eml">As it came</a></p>
</details>
{% else %}
<p>None yet. Mails that the functions send appear here; reload this page.</p>
{% endfor %}
</html>
""")


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT, which the caller has blocked. Returns 2 if it cannot start as asked."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.local.mail", description="A mail server that delivers nothing."
    )
    add = parser.add_argument
    add("--port", type=int, default=DEFAULT_PORT, help="for SMTP; 0 takes a free one (%(default)s)")
    add("--web-port", type=int, default=DEFAULT_WEB_PORT, help="for the web page; 0 takes a free one (%(default)s)")
    add("--folder", type=Path, required=True, help="where the mails are kept")
    options = parser.parse_args(arguments)
    try:
        with MailServer(folder=options.folder, port=options.port, web_port=options.web_port) as server:
            print(f"Mail server ready on {LOOPBACK}:{server.port}, web page {server.web_url}", flush=True)
            signal.sigwait(ENDING)
    except OSError as problem:
        print(f"cannot start: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # Blocked before there is any other thread, and so in every one: only `sigwait` gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    sys.exit(main())
