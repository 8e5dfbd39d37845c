"""Over a real socket: each call is one request as written, and whatever comes back, or does not, has a meaning."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import pytest
import stripe

from shared import gateway as gateway_module
from shared.charge import Answered, Fetched, Listed, LookFailed, Request, Seen
from shared.gateway import PAGE_SIZE, STRIPE_API_VERSION, Contact, Gateway

API_KEY: Final = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"
ACCOUNT: Final = "acct_1"
VERSION: Final = "2025-01-27.acacia"  # Not the SDK's own: an older charge keeps the version that it began with.
PATIENCE_SECONDS: Final = 10.0  # The time limit of a call that is answered.
SHORT_SECONDS: Final = 0.4  # And of one that is not.
NOON: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)

CREATE: Final = Request(
    idempotency_key="pio-c1-create-1",
    operation="create",
    parameters='{"currency": "usd", "amount": 1999, "metadata": {"z": "1", "a": "2"}, "confirm": false}',
    api_version=VERSION,
)
CONFIRM: Final = Request(
    idempotency_key="pio-c1-g1-confirm-1",
    operation="confirm",
    parameters='{"payment_method": "pm_1", "off_session": true}',
    api_version=VERSION,
    payment_intent="pi_1",
)
CANCEL: Final = Request(
    idempotency_key="pio-c1-cancel-1",
    operation="cancel",
    parameters='{"cancellation_reason": "abandoned"}',
    api_version=VERSION,
    payment_intent="pi_1",
)


def intent(name: str = "pi_1", status: str = "succeeded") -> dict[str, Any]:
    """A PaymentIntent."""
    return {
        "id": name,
        "object": "payment_intent",
        "status": status,
        "amount": 1999,
        "amount_received": 1999 if status == "succeeded" else 0,
        "currency": "usd",
        "livemode": False,
        "created": int(NOON.timestamp()),
        "metadata": {"pio_charge": "c1"},
    }


def refusal(**error: Any) -> dict[str, Any]:
    """A refusal."""
    return {"error": {"type": "invalid_request_error", "message": "No.", **error}}


def page(*rows: Mapping[str, Any], has_more: bool = False) -> dict[str, Any]:
    """A page of a list."""
    return {"object": "list", "data": list(rows), "has_more": has_more, "url": "/v1/payment_intents"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server does with one request.

    `cut`: it promises a byte more than it sends. `drop`: it says nothing. `until`: it waits.
    """

    status: int = 200
    body: Any = None
    raw: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    drop: bool = False
    until: threading.Event | None = None


@dataclass(frozen=True)
class Received:
    """One request, as it arrived. `fields`: of the body, or of the query, in their order."""

    method: str
    path: str
    headers: Mapping[str, str]
    fields: list[tuple[str, str]]


class Server:
    """Stripe, by a script: one reply a request."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.received: list[Received] = []
        handler = type("Handler", (_Handler,), {"server_of_the_test": self})
        self._http = _Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have gone away."""


class _Handler(BaseHTTPRequestHandler):
    server_of_the_test: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Receive, and do what the script says."""
        server = self.server_of_the_test
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        query = parse_qsl(parts.query or body, keep_blank_values=True)
        server.received.append(Received(self.command, parts.path, dict(self.headers), query))
        reply = server.script.pop(0)
        if reply.until is not None:
            reply.until.wait(PATIENCE_SECONDS)
        if reply.drop:
            self.close_connection = True
            return
        raw = json.dumps(reply.body).encode() if reply.raw is None else reply.raw
        self.send_response(reply.status)
        for name, value in {"Request-Id": "req_1", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw) + reply.cut))
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = reply.cut

    def do_GET(self) -> None:
        """Likewise."""
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server without a script."""
    running = Server()
    yield running
    running.close()


@pytest.fixture
def gateway(server: Server) -> Gateway:
    """The gateway, pointed at it."""
    return Gateway(API_KEY, server.url, timeout_seconds=PATIENCE_SECONDS)


# --- One request, as written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (CREATE, "/v1/payment_intents"),
        (CONFIRM, "/v1/payment_intents/pi_1/confirm"),
        (CANCEL, "/v1/payment_intents/pi_1/cancel"),
    ],
    ids=["create", "confirm", "cancel"],
)
def test_a_request_goes_out_once_with_its_own_key_version_and_account(
    server: Server, gateway: Gateway, request_: Request, path: str
) -> None:
    """All that Stripe may compare when it sees the key again."""
    server.script = [Reply(body=intent())]

    gateway.send(request_, ACCOUNT)

    (received,) = server.received
    assert (received.method, received.path) == ("POST", path)
    assert received.headers["Idempotency-Key"] == request_.idempotency_key
    assert received.headers["Stripe-Version"] == VERSION
    assert received.headers["Stripe-Account"] == ACCOUNT
    assert received.headers["Authorization"] == f"Bearer {API_KEY}"


def test_stripe_is_told_nothing_that_it_was_not_asked(server: Server, gateway: Gateway) -> None:
    """The SDK's telemetry times the call before, names this machine, and writes a file to know it again."""
    server.script = [Reply(body=intent()), Reply(body=intent())]

    gateway.send(CONFIRM, None)
    gateway.send(CONFIRM, None)

    for received in server.received:
        assert "X-Stripe-Client-Telemetry" not in received.headers
        assert {"telemetry_id", "platform"}.isdisjoint(json.loads(received.headers["X-Stripe-Client-User-Agent"]))


def test_parameters_keep_the_order_in_which_they_were_written_down(server: Server, gateway: Gateway) -> None:
    """What Stripe's comparison covers is not documented: so every byte is the same."""
    server.script = [Reply(body=intent())]

    gateway.send(CREATE, None)

    assert server.received[0].fields == [
        ("currency", "usd"),
        ("amount", "1999"),
        ("metadata[z]", "1"),
        ("metadata[a]", "2"),
        ("confirm", "false"),
    ]
    assert "Stripe-Account" not in server.received[0].headers


@pytest.mark.parametrize(
    "request_",
    [
        Request(idempotency_key="k", operation="refund", parameters="{}", api_version=VERSION),
        Request(idempotency_key="k", operation="confirm", parameters="{}", api_version=VERSION),
        Request(idempotency_key="k", operation="create", parameters="{}", api_version=VERSION, payment_intent="pi_1"),
        Request(idempotency_key="k", operation="create", parameters="{", api_version=VERSION),
        Request(idempotency_key="", operation="create", parameters="{}", api_version=VERSION),
    ],
    ids=["unknown operation", "confirm of nothing", "create of something", "no JSON", "no key"],
)
def test_what_cannot_be_sent_is_refused_before_anything_is_sent(
    server: Server, gateway: Gateway, request_: Request
) -> None:
    """A bug of ours, which must not look as if money might have moved."""
    with pytest.raises(ValueError, match=r"Request|cannot|Expecting"):
        gateway.send(request_, None)

    assert server.received == []


def test_an_exception_before_the_send_is_not_taken_for_a_lost_reply(server: Server, gateway: Gateway) -> None:
    """The SDK chokes on these parameters, and no byte has left."""
    strange = Request(idempotency_key="k", operation="create", parameters="[1]", api_version=VERSION)

    with pytest.raises(AttributeError):
        gateway.send(strange, None)

    assert server.received == []


def test_the_version_frozen_into_new_charges_is_the_one_that_the_sdk_is_made_for() -> None:
    """An upgrade of the SDK fails here until somebody has read what the new version changes."""
    assert stripe.api_version == STRIPE_API_VERSION


# --- What comes back --------------------------------------------------------------------------------------------------

REPLAYED: Final = {"Idempotent-Replayed": "true", "Request-Id": "req_2"}
HTML: Final = b"<html><h1>502 Bad Gateway</h1></html>"


@pytest.mark.parametrize(
    ("reply", "expected", "request_id"),
    [
        (Reply(body=intent()), Seen.SUCCEEDED, "req_1"),
        (Reply(status=402, body=refusal(type="card_error", code="card_declined")), Seen.DECLINED, "req_1"),
        (Reply(status=400, body=refusal(type="idempotency_error")), Seen.PARAMETERS_DRIFTED, "req_1"),
        (Reply(status=401, body=refusal()), Seen.UNAUTHORIZED, "req_1"),
        (Reply(status=409, body=refusal(code="idempotency_key_in_use")), Seen.KEY_IN_USE, "req_1"),
        (Reply(status=409, body=refusal(), headers={"Stripe-Should-Retry": "true"}), Seen.KEY_IN_USE, "req_1"),
        (Reply(status=424, body=refusal()), Seen.SERVER_ERROR, "req_1"),
        (Reply(status=429, body=refusal(code="lock_timeout")), Seen.LIMITED, "req_1"),
        (Reply(status=500, body=refusal(type="api_error"), headers=REPLAYED), Seen.SERVER_ERROR, "req_2"),
        (Reply(status=502, raw=HTML), Seen.SERVER_ERROR, "req_1"),
        (Reply(status=500, body={"error": None}), Seen.SERVER_ERROR, "req_1"),
        (Reply(status=307, headers={"Location": "/v1/elsewhere"}), Seen.SERVER_ERROR, "req_1"),
        (Reply(raw=b"null"), Seen.SERVER_ERROR, "req_1"),
        (Reply(raw=b"[]"), Seen.SERVER_ERROR, "req_1"),
        (Reply(raw=b'{"id": "pi_1", "obje'), Seen.SERVER_ERROR, "req_1"),
        (Reply(raw=b"\xff\xfe"), Seen.SERVER_ERROR, "req_1"),
        (Reply(raw=b"[" * 100_000), Seen.SERVER_ERROR, "req_1"),
        (Reply(body=intent("pi_another")), Seen.SERVER_ERROR, "req_1"),
        (Reply(body=intent(), cut=True), Seen.NO_REPLY, None),
        (Reply(drop=True), Seen.NO_REPLY, None),
    ],
    ids=[
        "200",
        "402",
        "idempotency_error",
        "401",
        "409",
        "409 that the SDK would repeat",
        "424",
        "429",
        "500 replayed",
        "502 of an edge",
        "500 that the SDK cannot read",
        "a redirect",
        "null",
        "a list",
        "half of the JSON",
        "no text",
        "JSON too deep to read",
        "another PaymentIntent",
        "cut off",
        "dropped",
    ],
)
def test_one_send_has_one_outcome(
    server: Server, gateway: Gateway, reply: Reply, expected: Seen, request_id: str | None
) -> None:
    """Never a second send, never an exception, and the request id of whatever was answered."""
    server.script = [reply]

    answer = gateway.send(CONFIRM, ACCOUNT)

    assert (answer.seen, answer.request_id) == (expected, request_id)
    assert answer.idempotency_key == CONFIRM.idempotency_key
    assert answer.replayed is (reply.headers is REPLAYED)
    assert len(server.received) == 1


def test_a_decline_brings_stripes_reasons_and_the_payment_intent(server: Server, gateway: Gateway) -> None:
    """Read from the body: the SDK's exception keeps less."""
    error = {"code": "card_declined", "decline_code": "do_not_honor", "advice_code": "try_again_later"}
    server.script = [Reply(status=402, body=refusal(**error, payment_intent=intent(status="requires_payment_method")))]

    answer = gateway.send(CONFIRM, None)

    assert answer.error is not None
    assert (answer.error.code, answer.error.decline_code) == ("card_declined", "do_not_honor")
    assert answer.payment_intent is not None
    assert answer.payment_intent.seen is Seen.UNCONFIRMED


def test_a_time_out_is_no_reply_and_no_second_send(server: Server) -> None:
    """The answer comes too late: it may have charged all the same."""
    answered = threading.Event()
    server.script = [Reply(body=intent(), until=answered)]

    answer = Gateway(API_KEY, server.url, timeout_seconds=SHORT_SECONDS).send(CONFIRM, None)

    answered.set()
    assert answer == Answered(idempotency_key=CONFIRM.idempotency_key, seen=Seen.NO_REPLY)
    assert len(server.received) == 1


def test_a_refused_connection_is_no_reply() -> None:
    """Nothing was sent, but that is not to be relied on."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gateway = Gateway(API_KEY, f"http://127.0.0.1:{closed.getsockname()[1]}", timeout_seconds=SHORT_SECONDS)

        assert gateway.send(CONFIRM, None) == Answered(idempotency_key=CONFIRM.idempotency_key, seen=Seen.NO_REPLY)


def test_an_answer_is_never_taken_for_that_of_the_call_before(server: Server, gateway: Gateway) -> None:
    """The call before was paid; this one got no reply."""
    server.script = [Reply(body=intent()), Reply(drop=True)]

    assert gateway.send(CONFIRM, None).seen is Seen.SUCCEEDED
    assert gateway.send(CONFIRM, None).seen is Seen.NO_REPLY


def test_threads_hear_their_own_answers(server: Server, gateway: Gateway) -> None:
    """One gateway serves all requests of an instance: what pays one charge says nothing of another."""
    answered = threading.Event()
    server.script = [Reply(drop=True, until=answered), Reply(body=intent())]
    heard: dict[str, Seen] = {}

    def send(name: str) -> None:
        heard[name] = gateway.send(CONFIRM, None).seen

    slow = threading.Thread(target=send, args=("slow",))
    slow.start()
    while not server.received:
        slow.join(0.005)
    send("quick")
    answered.set()
    slow.join()

    assert heard == {"slow": Seen.NO_REPLY, "quick": Seen.SUCCEEDED}


def test_death_is_not_taken_for_a_lost_reply() -> None:
    """A process that is being ended does not go on to record anything."""

    def die() -> tuple[str, int, Mapping[str, str]]:
        raise SystemExit

    with pytest.raises(SystemExit):
        Gateway(API_KEY, None, timeout_seconds=1, http_client=InProcess(die)).send(CONFIRM, None)


class InProcess(stripe.HTTPClient):
    """Another client, as a double of Stripe brings one."""

    name = "in-process"

    def __init__(self, reply: Callable[[], tuple[str, int, Mapping[str, str]]]) -> None:
        super().__init__()
        self._reply = reply

    def request(self, *_: Any, **__: Any) -> tuple[str, int, Mapping[str, str]]:
        """Answer at once."""
        return self._reply()

    def close(self) -> None:
        """Nothing is open."""


def test_the_answers_of_any_client_are_heard() -> None:
    """Whatever case its headers are in."""
    headers = {"request-id": "req_9", "IDEMPOTENT-REPLAYED": "true"}
    client = InProcess(lambda: (json.dumps(intent()), 200, headers))

    answer = Gateway(API_KEY, None, timeout_seconds=1, http_client=client).send(CONFIRM, None)

    assert (answer.seen, answer.request_id, answer.replayed) == (Seen.SUCCEEDED, "req_9", True)


# --- Looking ----------------------------------------------------------------------------------------------------------


def test_a_fetch_reads_the_payment_intent_on_its_account(server: Server, gateway: Gateway) -> None:
    """With the charge's version, and without a key: it changes nothing."""
    server.script = [Reply(body=intent())]

    fetched = gateway.fetch("pi_1", ACCOUNT, VERSION)

    assert isinstance(fetched, Fetched)
    assert (fetched.payment_intent.seen, fetched.charge_under_way) == (Seen.SUCCEEDED, False)
    (received,) = server.received
    assert (received.method, received.path) == ("GET", "/v1/payment_intents/pi_1")
    assert (received.headers["Stripe-Account"], received.headers["Stripe-Version"]) == (ACCOUNT, VERSION)
    assert "Idempotency-Key" not in received.headers


@pytest.mark.parametrize(
    ("statuses", "under_way"),
    [
        ((), False),
        (("failed", "failed"), False),
        (("failed", "pending"), True),
        (("succeeded",), True),
        (("a status of next year",), True),
    ],
)
def test_a_charge_that_has_not_failed_is_under_way(
    server: Server, gateway: Gateway, statuses: tuple[str, ...], under_way: bool
) -> None:
    """Two pages of them; what is not known to have failed may move money."""
    rows = [{"id": f"ch_{number}", "object": "charge", "status": status} for number, status in enumerate(statuses)]
    first = {"id": "ch_first", "object": "charge", "status": "failed"}
    server.script = [
        Reply(body=intent(status="requires_payment_method")),
        Reply(body=page(first, has_more=True)),
        Reply(body=page(*rows)),
    ]

    fetched = gateway.fetch("pi_1", ACCOUNT, VERSION, with_charges=True)

    assert isinstance(fetched, Fetched)
    assert fetched.charge_under_way is under_way
    assert server.received[2].path == "/v1/charges"
    assert dict(server.received[2].fields) == {
        "payment_intent": "pi_1",
        "limit": str(PAGE_SIZE),
        "starting_after": "ch_first",
    }


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(status=404, body=refusal(code="resource_missing", param="intent")), Seen.MISSING_PAYMENT_INTENT),
        (Reply(status=401, body=refusal()), Seen.UNAUTHORIZED),
        (Reply(status=500, body=refusal()), Seen.SERVER_ERROR),
        (Reply(body=intent("pi_another")), Seen.SERVER_ERROR),
        (Reply(raw=b"null"), Seen.SERVER_ERROR),
        (Reply(drop=True), Seen.NO_REPLY),
    ],
    ids=["404", "401", "500", "another", "null", "dropped"],
)
def test_a_look_that_fails_says_how(server: Server, gateway: Gateway, reply: Reply, expected: Seen) -> None:
    """And never shows a PaymentIntent."""
    server.script = [reply]

    failed = gateway.fetch("pi_1", None, VERSION)

    assert isinstance(failed, LookFailed)
    assert failed.seen is expected


def test_a_list_of_charges_that_fails_is_not_taken_for_an_empty_one(server: Server, gateway: Gateway) -> None:
    """Nobody may conclude from it that nothing is under way."""
    server.script = [Reply(body=intent(status="requires_payment_method")), Reply(status=502, raw=HTML)]

    assert gateway.fetch("pi_1", None, VERSION, with_charges=True) == LookFailed(seen=Seen.SERVER_ERROR)


def listed(gateway: Gateway) -> Listed | LookFailed:
    """The list of a customer's last hour, and half a second."""
    since = NOON - timedelta(hours=1, microseconds=500_000)
    return gateway.list("cus_1", ACCOUNT, since, NOON + timedelta(microseconds=1), VERSION)


def test_a_list_is_read_to_its_last_page(server: Server, gateway: Gateway) -> None:
    """The PaymentIntent that is looked for may be the last; bounds are whole seconds, rounded outwards."""
    server.script = [
        Reply(body=page(intent("pi_3"), intent("pi_2"), has_more=True)),
        Reply(body=page(intent("pi_1", "canceled"))),
    ]

    found = listed(gateway)

    assert isinstance(found, Listed)
    assert [(i.id, i.seen) for i in found.payment_intents] == [
        ("pi_3", Seen.SUCCEEDED),
        ("pi_2", Seen.SUCCEEDED),
        ("pi_1", Seen.CANCELED),
    ]
    noon = int(NOON.timestamp())
    asked = {"customer": "cus_1", "created[gte]": str(noon - 3601), "created[lte]": str(noon + 1), "limit": "100"}
    assert [dict(received.fields) for received in server.received] == [asked, {**asked, "starting_after": "pi_2"}]
    assert {received.headers["Stripe-Account"] for received in server.received} == {ACCOUNT}


@pytest.mark.parametrize("http_status", [400, 404])
def test_a_customer_that_is_gone_is_looked_for_by_date_alone(
    server: Server, gateway: Gateway, http_status: int
) -> None:
    """Its PaymentIntents are still there."""
    server.script = [
        Reply(status=http_status, body=refusal(code="resource_missing", param="customer")),
        Reply(body=page(intent())),
    ]

    found = listed(gateway)

    assert isinstance(found, Listed)
    assert [i.id for i in found.payment_intents] == ["pi_1"]
    assert "customer" not in dict(server.received[1].fields)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([Reply(body=page(intent(), has_more=True)), Reply(status=429, body=refusal())], Seen.LIMITED),
        ([Reply(body=page(intent(), has_more=True)), Reply(drop=True)], Seen.NO_REPLY),
        ([Reply(body=page({"id": "pi_1", "object": "payment_intent"}))], Seen.SERVER_ERROR),
        ([Reply(body=page(has_more=True))], Seen.SERVER_ERROR),
        ([Reply(body={"object": "list", "data": []})], Seen.SERVER_ERROR),
        ([Reply(body=page(None, has_more=True))], Seen.SERVER_ERROR),  # type: ignore[arg-type]
        ([Reply(body={})], Seen.SERVER_ERROR),
        ([Reply(raw=b"null")], Seen.SERVER_ERROR),
        ([Reply(status=403, body=refusal(code="account_invalid"))], Seen.MISSING_OBJECT),
    ],
    ids=["429", "dropped", "half a row", "no cursor", "no has_more", "a null row", "no list", "null", "no account"],
)
def test_half_a_list_is_never_taken_for_the_whole(
    server: Server, gateway: Gateway, script: list[Reply], expected: Seen
) -> None:
    """That none of ours is in it leads to a new PaymentIntent: only a whole list may say so."""
    server.script = script

    failed = listed(gateway)

    assert isinstance(failed, LookFailed)
    assert failed.seen is expected
    assert server.script == []


def test_a_list_without_end_is_given_up(server: Server, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person looks at it; the error says why."""
    monkeypatch.setattr(gateway_module, "PAGES_LIMIT", 3)
    server.script = [Reply(body=page(intent(f"pi_{number}"), has_more=True)) for number in range(4)]

    failed = listed(gateway)

    assert isinstance(failed, LookFailed)
    assert failed.seen is Seen.SERVER_ERROR
    assert failed.error is not None
    assert failed.error.message == "more than 3 pages to list"
    assert len(server.received) == 3


def test_more_connected_accounts_are_listed_than_one_customer_has_payments(server: Server, gateway: Gateway) -> None:
    """A platform may have thousands, and without the list none of them is reconciled."""
    server.script = [Reply(body=page({"id": f"acct_{number}"}, has_more=number < 99)) for number in range(100)]
    rows = gateway.accounts()
    assert not isinstance(rows, LookFailed)
    assert len(rows) == 100


# --- Keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api_key", "livemode"),
    [("sk_live_1", True), ("rk_live_1", True), ("sk_test_1", False), ("rk_test_1", False)],
)
def test_the_key_tells_whether_the_money_is_real(api_key: str, livemode: bool) -> None:
    """A restricted key as well as a secret one."""
    assert Gateway(api_key, None, timeout_seconds=1).livemode is livemode


def test_the_api_key_shows_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    """Not even where `requests` puts the header that it refuses into its exception."""
    gateway = Gateway(f"{API_KEY}\n", "http://127.0.0.1:9", timeout_seconds=1)

    answer = gateway.send(CONFIRM, None)

    written = capfd.readouterr()
    assert answer.seen is Seen.NO_REPLY
    assert API_KEY not in repr(gateway) + repr(vars(gateway)) + repr(answer) + written.out + written.err


# --- How to write to somebody -----------------------------------------------------------------------------------------


def test_a_customer_is_written_to_as_the_account_that_has_them_knows_them(server: Server, gateway: Gateway) -> None:
    """Their address and their languages."""
    server.script = [
        Reply(
            body={"id": "cus_1", "object": "customer", "email": "jo@example.com", "preferred_locales": ["de-AT", "en"]}
        )
    ]

    found = gateway.contact_of_customer("cus_1", ACCOUNT)

    assert found == Contact(email="jo@example.com", locales=("de-AT", "en"))
    (received,) = server.received
    assert (received.method, received.path) == ("GET", "/v1/customers/cus_1")
    assert received.headers["Stripe-Account"] == ACCOUNT


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body={"id": "cus_1", "object": "customer", "deleted": True}),
        Reply(status=404, body=refusal(code="resource_missing", param="id")),
        Reply(body={"id": "cus_1", "object": "customer", "email": None, "preferred_locales": None}),
        Reply(body={"id": "cus_1", "object": "customer", "email": ""}),
    ],
    ids=["deleted", "missing", "without address", "with an empty one"],
)
def test_a_customer_without_address_or_deleted_has_none(server: Server, gateway: Gateway, reply: Reply) -> None:
    """That is an answer, not a failure."""
    server.script = [reply]

    assert gateway.contact_of_customer("cus_1", None) == Contact()


@pytest.mark.parametrize(
    ("account", "path"), [("acct_1", "/v1/accounts/acct_1"), (None, "/v1/account")], ids=["connected", "our own"]
)
@pytest.mark.parametrize(
    "named",
    [
        {"business_profile": {"name": "Rocket Rides"}, "settings": {"dashboard": {"display_name": "Other"}}},
        {"business_profile": {"name": None}, "settings": {"dashboard": {"display_name": "Rocket Rides"}}},
    ],
    ids=["by its profile", "by its dashboard"],
)
def test_an_account_has_the_name_that_its_customers_know(
    server: Server, gateway: Gateway, account: str | None, path: str, named: Mapping[str, Any]
) -> None:
    """And its owner's address. It is read with the platform's own key."""
    server.script = [Reply(body={"id": "acct_1", "object": "account", "email": "owner@example.com", **named})]

    found = gateway.contact_of_account(account)

    assert found == Contact(email="owner@example.com", name="Rocket Rides")
    assert server.received[0].path == path
    assert "Stripe-Account" not in server.received[0].headers


def test_an_account_that_is_not_connected_any_more_has_no_address(server: Server, gateway: Gateway) -> None:
    """Stripe says it with a 403."""
    server.script = [Reply(status=403, body=refusal(code="account_invalid"))]

    assert gateway.contact_of_account("acct_1") == Contact()


@pytest.mark.parametrize(
    ("reply", "seen"),
    [
        (Reply(drop=True), Seen.NO_REPLY),
        (Reply(status=500, body=refusal()), Seen.SERVER_ERROR),
        (Reply(status=429, body=refusal(code="rate_limit")), Seen.LIMITED),
        (Reply(status=401, body=refusal()), Seen.UNAUTHORIZED),
        (Reply(status=403, body=refusal(code="more_permissions_required")), Seen.UNAUTHORIZED),
        (Reply(raw=b"<html>"), Seen.SERVER_ERROR),
    ],
    ids=str,
)
def test_an_address_that_cannot_be_read_is_not_taken_for_none(
    server: Server, gateway: Gateway, reply: Reply, seen: Seen
) -> None:
    """Nobody goes untold because Stripe was down for a moment."""
    server.script = [reply]

    failed = gateway.contact_of_customer("cus_1", None)

    assert isinstance(failed, LookFailed)
    assert failed.seen is seen
