"""The notify function over a real mail server: what is accepted is accepted, and what is not comes again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from infra.local.mail import Fault, MailServer
from shared.charge import Audience, Topic
from shared.mail import Smtp
from tests.notices.office import CHARGE_ID, OPERATOR, Office

DECLINED: Final = (Audience.CUSTOMER, Topic.DECLINED)
MESSAGE_ID: Final = f"<{CHARGE_ID}.1@rides.example>"
SHORT_SECONDS: Final = 0.3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MailServer]:
    """A mail server on this machine."""
    with MailServer(folder=tmp_path / "mails") as running:
        yield running


@pytest.fixture
def office(server: MailServer) -> Office:
    """A deployment that uses it, and a charge that a customer should hear of."""
    office = Office(mail=Smtp(f"smtp://127.0.0.1:{server.port}", timeout_seconds=SHORT_SECONDS))
    office.record(DECLINED)
    return office


def test_a_customer_gets_one_mail(office: Office, server: MailServer) -> None:
    """In both forms, under its own name."""
    assert [office.answer().body["result"] for _ in range(2)] == ["told", "done before"]

    (kept,) = server.kept()
    assert kept.message["Message-ID"] == MESSAGE_ID
    assert kept.message["To"] == "jo@example.com"
    assert "$19.99" in kept.text
    assert "$19.99" in kept.html


@pytest.mark.parametrize(
    ("fault", "status", "mails"),
    [
        (Fault.DOWN, 503, 1),
        (Fault.CLOSING, 503, 1),
        (Fault.REFUSE_SENDER, 503, 1),
        (Fault.REFUSE_TEMPORARILY, 409, 1),
        (Fault.HANG, 503, 2),  # It had been taken in, and nobody could know.
        (Fault.LOSE_REPLY, 503, 2),  # Likewise.
        (Fault.REFUSE_PERMANENTLY, 409, 1),  # The operator as well: it is the server.
        (Fault.REFUSE_CONTENT, 409, 1),  # A filter is mended, or thinks better of it.
    ],
)
def test_a_mail_server_in_trouble_delays_mail_and_loses_none(
    office: Office, server: MailServer, fault: Fault, status: int, mails: int
) -> None:
    """All copies of it are one message."""
    server.fail(fault)
    answers = [office.answer().status, office.answer().status] if mails < 2 else [office.answer().status]
    assert set(answers) <= {status, 200}
    assert answers[0] == status
    server.heal()

    assert office.answer().status == 200

    assert [kept.message["Message-ID"] for kept in server.kept()] == [MESSAGE_ID] * mails
    assert not office.notice().dropped


def test_a_customer_whose_mailbox_is_none_has_the_operator_told_once(office: Office, server: MailServer) -> None:
    """What the customer was to read, and why they did not; a task that comes again tells nobody anything."""
    server.fail(Fault.REFUSE_PERMANENTLY, times=1)

    assert [office.answer().body["result"] for _ in range(3)] == ["dropped", "done before", "done before"]

    (kept,) = server.kept()
    assert kept.message["To"] == OPERATOR
    assert kept.message["Message-ID"] == f"<{CHARGE_ID}.1.op@rides.example>"
    for said in ("550 5.1.1", office.charge().terms.customer, "Your payment of $19.99 did not go through"):
        assert said in kept.text
