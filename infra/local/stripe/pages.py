"""The two pages of Stripe's that a customer sees: the bank's question, and where a card is entered."""

from html import escape
from typing import Final
from urllib.parse import parse_qs

from infra.local.stripe.cards import BEHAVIOURS
from infra.local.stripe.control import PREFIX
from infra.local.stripe.engine import Engine
from infra.local.stripe.errors import Refusal
from infra.local.stripe.wire import Headers, Response

AUTHENTICATE: Final = f"{PREFIX}/authenticate/"
CHECKOUT: Final = f"{PREFIX}/checkout/"

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui; max-width: 30rem; margin: 10vh auto; padding: 0 1rem }}
button, select {{ font: inherit; padding: .5rem 1rem; margin: .25rem .25rem .25rem 0 }}
</style>
</head>
<body><h1>{title}</h1><p>{text}</p>{form}</body>
</html>"""


def is_page(path: str) -> bool:
    """Whether a person would look at that."""
    return path.startswith((AUTHENTICATE, CHECKOUT)) and path.count("/") == AUTHENTICATE.count("/")


def handle(engine: Engine, method: str, path: str, body: bytes) -> Response:
    """Show a page, or do what was chosen on it and send the customer back."""
    name = path.rpartition("/")[2]
    thing = engine.find(name)
    if thing is None:
        return _page(404, "Nothing here", "This link is not known, or it has ended.", "")
    if method == "GET":
        return _question(name) if path.startswith(AUTHENTICATE) else _card(name)
    chosen = {key: values[0] for key, values in parse_qs(body.decode()).items()}
    try:
        if path.startswith(AUTHENTICATE):
            back = ((thing.get("next_action") or {}).get("redirect_to_url") or {}).get("return_url")
            engine.authenticate(name, succeeds=chosen.get("answer") == "yes")
        else:
            back = thing.get("success_url")
            engine.complete_checkout(name, chosen.get("card", "pm_card_visa"))
    except Refusal as refusal:
        return _page(refusal.status, "That did not work", str(refusal), "")
    if not back:
        return _page(200, "Thank you", "You can close this page.", "")
    return Response(303, Headers({"Location": str(back).replace("{CHECKOUT_SESSION_ID}", name)}), b"")


def _question(name: str) -> Response:
    form = (
        f'<form method="post" action="{AUTHENTICATE}{escape(name)}">'
        '<button name="answer" value="yes">Complete</button><button name="answer" value="no">Fail</button></form>'
    )
    return _page(200, "Your bank asks", "Is it you who pays?", form)


def _card(name: str) -> Response:
    options = "".join(f"<option>{escape(card)}</option>" for card in BEHAVIOURS if card.startswith("pm_card_"))
    form = (
        f'<form method="post" action="{CHECKOUT}{escape(name)}">'
        f'<select name="card" aria-label="Card">{options}</select><button>Save card</button></form>'
    )
    return _page(200, "Your card", "Choose a test card to save.", form)


def _page(status: int, title: str, text: str, form: str) -> Response:
    body = PAGE.format(title=escape(title), text=escape(text), form=form).encode()
    return Response(status, Headers({"Content-Type": "text/html; charset=utf-8"}), body)
