"""Sends one mail, by SMTP.

MailError
├── ServerDown      the server as a whole does not take mail from us now: no other message will fare better
├── NotNow          it does not take this message now, and may later
└── NeverAccepted   it has said for good that it does not take this message

A message may have been accepted although ServerDown is raised: its answer was lost. It is sent again as it was, under
the same Message-ID. What an accepting server finds out later comes back as mail, to MAIL_FROM: nobody here reads that.
"""

import contextlib
import re
import smtplib
import ssl
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from shared.settings import is_loopback

TIMEOUT_SECONDS: Final = 10.0  # For each step. A server that takes longer to take a mail is in trouble.
PORTS: Final = {"smtp": 587, "smtps": 465}  # For submission, as RFC 8314 has it.
SERVICE_CLOSING: Final = 421  # It may be said instead of any answer.
NOT_THE_RECIPIENT: Final = frozenset(
    {530, 534, 535, 538}
)  # 5xx that ask us to authenticate: our own matter (RFC 4954).
MAILBOX_FULL: Final = 552  # Where no detail says otherwise.
PASSES: Final = ("5.2.", "5.7.")  # A full mailbox, a filter, a block list: people mend these (RFC 3463, 3.3 and 3.8).
DETAIL: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)")  # Says more than the code (RFC 3463).
USER: Final = re.compile(r"[^\s()<>\[\]:;@\\,\"]+")  # One that needs no quotes: others are typing errors.
DOMAIN: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")


class MailError(Exception):
    """The message was not accepted, as far as is known. The text never names the recipient."""


class ServerDown(MailError):
    """The server as a whole does not take mail from us now."""


class NotNow(MailError):
    """The server does not take this message now."""


class NeverAccepted(MailError):
    """The server will not take this message."""


class Mail(Protocol):
    """A way to send mail (`Smtp`)."""

    def send(self, message: EmailMessage) -> None:
        """Send a message to its one recipient. Raises MailError unless it was accepted."""


class Smtp:
    """A mail server, by `smtp://user:password@host:587` (STARTTLS, unless on this machine) or `smtps://...`.

    A connection each message: they are few, and one that is kept is found dead when it is needed.
    """

    def __init__(self, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        parts = urlsplit(url)
        self._tls_at_once = parts.scheme == "smtps"
        self._host = parts.hostname or ""
        self._port = parts.port or PORTS[parts.scheme]
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._timeout_seconds = timeout_seconds

    def send(self, message: EmailMessage) -> None:
        """Send a message to its one recipient. Raises MailError unless it was accepted."""
        try:
            server = self._connected(domain_of(message))
        except (smtplib.SMTPException, OSError) as error:
            raise ServerDown(_reason(error)) from error
        try:
            server.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            ((code, text),) = error.recipients.values()
            raise _refusal(code, text) from error
        except smtplib.SMTPDataError as error:
            raise _refusal(error.smtp_code, error.smtp_error) from error
        except smtplib.SMTPNotSupportedError as error:  # An address in a script that this server cannot carry.
            raise NeverAccepted(_reason(error)) from error
        except (smtplib.SMTPException, OSError) as error:  # Of the sender, too: that address is ours.
            raise ServerDown(_reason(error)) from error
        finally:
            with contextlib.suppress(smtplib.SMTPException, OSError):  # Whatever comes now changes nothing.
                server.quit()

    def _connected(self, our_name: str) -> smtplib.SMTP:
        """Connect, encrypt, and sign in."""
        context = ssl.create_default_context()
        server: smtplib.SMTP
        if self._tls_at_once:
            server = smtplib.SMTP_SSL(
                self._host, self._port, local_hostname=our_name, timeout=self._timeout_seconds, context=context
            )
        else:
            server = smtplib.SMTP(self._host, self._port, local_hostname=our_name, timeout=self._timeout_seconds)
        try:
            if not self._tls_at_once and not is_loopback(self._host):
                server.starttls(context=context)  # Raises where the server does not offer it.
            if self._user:
                server.login(self._user, self._password)
        except BaseException:
            server.close()
            raise
        return server


def addressed(message: EmailMessage, *, sender: str, recipient: str) -> None:
    """Write From and To. Raises NeverAccepted for a recipient that is not one mail address."""
    name, address = parseaddr(sender)
    message["From"] = Address(display_name=name, addr_spec=address)
    message["To"] = _recipient(recipient)


def _recipient(text: str) -> Address:
    """Read one address; its domain is written in ASCII, which every server can carry."""
    user, _, domain = text.strip().rpartition("@")
    try:
        ascii_domain = domain.encode("idna").decode()
        if not (USER.fullmatch(user) and user.isprintable() and DOMAIN.fullmatch(ascii_domain)):
            raise ValueError
        return Address(username=user, domain=ascii_domain)
    except ValueError:
        raise NeverAccepted("this is no mail address") from None  # Never the text, in no traceback either.


def domain_of(message: EmailMessage) -> str:
    """Return the domain that a message is from. It names us to the server, too: to look our own name up may hang."""
    return parseaddr(str(message["From"]))[1].rpartition("@")[2]


def _refusal(code: int, text: bytes | str) -> MailError:
    """Say what a negative answer about this one message amounts to (RFC 5321, 4.2.1)."""
    said = text.decode(errors="replace") if isinstance(text, bytes) else text
    detail = DETAIL.match(said)  # Of its words nothing else is kept: they mostly name the recipient.
    reason = f"{code} {detail[0]}" if detail else str(code)
    if code == SERVICE_CLOSING or code in NOT_THE_RECIPIENT:
        return ServerDown(reason)
    passes = detail[0].startswith(PASSES) if detail else code == MAILBOX_FULL
    return NeverAccepted(reason) if 500 <= code < 600 and not passes else NotNow(reason)


def _reason(error: Exception) -> str:
    """Return what to log: what kind of error it is, and the server's code where there is one."""
    return f"{type(error).__name__} {getattr(error, 'smtp_code', '')}".strip()
