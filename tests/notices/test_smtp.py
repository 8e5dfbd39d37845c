"""Mail over a real socket: what the server says, and what it comes to."""

import smtplib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.local.mail import Fault, MailServer, Secured
from shared.mail import MailError, NeverAccepted, NotNow, ServerDown, Smtp, _refusal, addressed

PATIENCE_SECONDS: Final = 10.0
SHORT_SECONDS: Final = 0.3
ELSEWHERE: Final = "mail.example.com"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MailServer]:
    """A mail server on this machine."""
    with MailServer(folder=tmp_path / "mails") as running:
        yield running


def smtp(server: MailServer, host: str = "127.0.0.1", timeout_seconds: float = PATIENCE_SECONDS) -> Smtp:
    """Our way to it."""
    return Smtp(f"smtp://{host}:{server.port}", timeout_seconds=timeout_seconds)


def letter(recipient: str = "jo@example.com", sender: str = "Rocket Rides <pay@rides.example>") -> EmailMessage:
    """A mail."""
    message = EmailMessage()
    addressed(message, sender=sender, recipient=recipient)
    message["Subject"] = "Hello"
    message["Message-ID"] = "<c1.1@rides.example>"
    message.set_content("Grüß Gott.")
    return message


# --- Accepted ---------------------------------------------------------------------------------------------------------


def test_a_mail_arrives_as_it_was_written(server: MailServer) -> None:
    """Once."""
    smtp(server).send(letter())

    (kept,) = server.kept()
    assert kept.message["From"] == "Rocket Rides <pay@rides.example>"
    assert kept.message["To"] == "jo@example.com"
    assert kept.message["Message-ID"] == "<c1.1@rides.example>"
    assert kept.text == "Grüß Gott.\n"


def test_what_happens_after_a_mail_was_accepted_changes_nothing(
    server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks at the good-bye would otherwise send everything twice."""

    def quit_(self: smtplib.SMTP) -> None:
        self.close()
        raise smtplib.SMTPServerDisconnected("at the good-bye")

    monkeypatch.setattr(smtplib.SMTP, "quit", quit_)

    smtp(server).send(letter())

    assert len(server.kept()) == 1


@pytest.mark.parametrize(
    ("recipient", "written"),
    [
        ("jo@bücher.example", "jo@xn--bcher-kva.example"),
        ("JO+tag@Example.COM", "JO+tag@Example.COM"),
        ("jö@example.com", "jö@example.com"),
    ],
)
def test_an_unusual_address_is_one_recipient(server: MailServer, recipient: str, written: str) -> None:
    """Neither two, nor none."""
    smtp(server).send(letter(recipient))

    (kept,) = server.kept()
    assert len(kept.message["To"].addresses) == 1
    assert f"To: {written}\r\n".encode() in kept.raw


@pytest.mark.parametrize(
    "recipient",
    [
        *("", "jo", "@example.com", "jo@", "jo@a,b@c", "jo@example.com,eve@example.com", "a,b@example.com"),
        *("jo@ex ample.com", "j o@example.com", "jo@example.com\nBcc: eve@example.com", "jo\n@example.com"),
        *("jo@-", "jo@a..b", f"jo@{'a' * 70}.com", "Jo <jo@example.com>", "jo@[127.0.0.1]"),
    ],
)
def test_what_is_no_address_is_not_written_to(recipient: str) -> None:
    """Stripe keeps whatever somebody typed; and the complaint does not repeat it."""
    with pytest.raises(NeverAccepted, match=r"^this is no mail address$"):
        addressed(EmailMessage(), sender="pay@rides.example", recipient=recipient)


# --- Refused, hanging, down -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "text", "kept"),
    [
        (Fault.REFUSE_TEMPORARILY, NotNow, "451 4.7.1", 0),
        (Fault.REFUSE_PERMANENTLY, NeverAccepted, "550 5.1.1", 0),
        (Fault.REFUSE_CONTENT, NotNow, "554 5.7.1", 0),
        (Fault.REFUSE_SENDER, ServerDown, "SMTPSenderRefused 550", 0),
        (Fault.CLOSING, ServerDown, "SMTPSenderRefused 421", 0),
        (Fault.LOSE_REPLY, ServerDown, "SMTPServerDisconnected", 1),
        (Fault.DOWN, ServerDown, "ConnectionRefusedError", 0),
    ],
)
def test_what_the_server_says_decides_whether_and_when_to_come_again(
    server: MailServer, fault: Fault, error: type[MailError], text: str, kept: int
) -> None:
    """And what is told of it names nobody."""
    server.fail(fault)

    with pytest.raises(error) as raised:
        smtp(server).send(letter())

    assert str(raised.value) == text
    assert len(server.kept()) == kept


@pytest.mark.parametrize(
    ("code", "said", "error"),
    [
        (552, b"5.2.2 mailbox full", NotNow),
        (552, b"mailbox full", NotNow),
        (550, b"5.2.1 disabled for now", NotNow),
        (550, b"5.7.1 blocked, see our list", NotNow),
        (552, b"5.3.4 message too big", NeverAccepted),
        (550, b"no such user", NeverAccepted),
        (550, b"5.1.1 no such user", NeverAccepted),
        (452, b"4.2.2 mailbox full", NotNow),
    ],
)
def test_a_no_that_people_can_mend_is_not_for_good(code: int, said: bytes, error: type[MailError]) -> None:
    """A mailbox is emptied, a filter is put right: only who does not exist never will."""
    assert type(_refusal(code, said)) is error


def test_a_server_that_hangs_is_down(server: MailServer) -> None:
    """Whether it took the mail is not known."""
    server.fail(Fault.HANG)

    with pytest.raises(ServerDown, match=r"TimeoutError|SMTPServerDisconnected"):
        smtp(server, timeout_seconds=SHORT_SECONDS).send(letter())


def test_a_server_that_comes_back_takes_mail_again(server: MailServer) -> None:
    """On the same port."""
    server.fail(Fault.DOWN)
    with pytest.raises(ServerDown):
        smtp(server).send(letter())
    server.heal()

    smtp(server).send(letter())

    assert len(server.kept()) == 1


def test_a_host_that_does_not_exist_is_down() -> None:
    """Or its name cannot be looked up just now."""
    with pytest.raises(ServerDown, match="gaierror"):
        Smtp("smtp://nowhere.invalid").send(letter())


@pytest.mark.parametrize(("code", "error"), [(421, ServerDown), (450, NotNow), (530, ServerDown), (550, NeverAccepted)])
def test_a_refusal_of_the_recipient_that_is_about_us_drops_nobody(
    server: MailServer, monkeypatch: pytest.MonkeyPatch, code: int, error: type[MailError]
) -> None:
    """530 to a recipient asks us to sign in."""

    def refuse(_self: smtplib.SMTP, recipient: str, _options: object = ()) -> tuple[int, bytes]:
        return code, f"{recipient} is refused".encode()

    monkeypatch.setattr(smtplib.SMTP, "rcpt", refuse)

    with pytest.raises(error) as raised:
        smtp(server).send(letter())

    assert str(raised.value) == str(code)


# --- Encrypted --------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the name of another machine lead to this one."""
    connect = socket.create_connection

    def near(address: tuple[str, int], *more: Any, **named: Any) -> socket.socket:
        assert address[0] == ELSEWHERE
        return connect(("127.0.0.1", address[1]), *more, **named)

    monkeypatch.setattr(socket, "create_connection", near)


def certificate(folder: Path, name: str) -> Path:
    """Write a certificate for that name and its key into one file, which also serves as the authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


def tls_for(path: Path) -> ssl.SSLContext:
    """What the server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.mark.usefixtures("elsewhere")
def test_beyond_this_machine_no_mail_goes_out_in_the_clear(server: MailServer) -> None:
    """A server without STARTTLS gets nothing, the password least of all."""
    with pytest.raises(ServerDown, match="SMTPNotSupportedError"):
        Smtp(f"smtp://user:secret@{ELSEWHERE}:{server.port}").send(letter())

    assert server.kept() == []


@pytest.mark.usefixtures("elsewhere")
def test_a_mail_goes_out_encrypted_to_a_server_that_shows_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By STARTTLS."""
    shown = certificate(tmp_path, ELSEWHERE)
    monkeypatch.setenv("SSL_CERT_FILE", str(shown))
    with MailServer(folder=tmp_path / "mails", secured=Secured(tls=tls_for(shown))) as server:
        smtp(server, ELSEWHERE).send(letter())

        assert len(server.kept()) == 1


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("trusted", [True, False], ids=["another name", "another authority"])
def test_a_server_that_is_not_who_it_should_be_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, trusted: bool
) -> None:
    """Whoever sits in between could read the link."""
    shown = certificate(tmp_path, "mail.evil.example" if trusted else ELSEWHERE)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(shown))
    with MailServer(folder=tmp_path / "mails", secured=Secured(tls=tls_for(shown))) as server:
        with pytest.raises(ServerDown, match="SSLCertVerificationError"):
            smtp(server, ELSEWHERE).send(letter())

        assert server.kept() == []


@pytest.mark.filterwarnings("ignore:Requiring AUTH:UserWarning")  # It does not see TLS from the beginning.
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("scheme", "at_once"), [("smtp", False), ("smtps", True)])
@pytest.mark.parametrize(("user", "accepted"), [("us%40er:p%3Aass", True), ("us%40er:wrong", False), ("", False)])
def test_whoever_signs_in_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, user: str, *, at_once: bool, accepted: bool
) -> None:
    """Over TLS from the beginning, as over STARTTLS; a wrong password is the operator's to mend, and drops nobody."""
    shown = certificate(tmp_path, ELSEWHERE)
    monkeypatch.setenv("SSL_CERT_FILE", str(shown))
    secured = Secured(tls=tls_for(shown), tls_at_once=at_once, login=("us@er", "p:ass"))
    with MailServer(folder=tmp_path / "mails", secured=secured) as server:
        mail = Smtp(f"{scheme}://{user}@{ELSEWHERE}:{server.port}" if user else f"{scheme}://{ELSEWHERE}:{server.port}")
        if accepted:
            mail.send(letter())
        else:
            with pytest.raises(ServerDown, match=r"SMTPAuthenticationError 535|SMTPSenderRefused 530"):
                mail.send(letter())

        assert len(server.kept()) == accepted
