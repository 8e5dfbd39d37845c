"""A world with an operator's page: the console function on the world's parts, and an operator who has no browser."""

import base64
import html
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from shared import policy, wiring
from shared.charge import Act, Chosen, charge_id
from shared.reconcile import FINDING
from tests.portal.portal import PageLost, Portal, Seen
from tests.world import KEY, START, Killed, _client

OPERATOR: Final = "me@example.com"
NAME: Final = charge_id(None, KEY)
DECLINED: Final = "pm_card_chargeDeclinedInsufficientFunds"
FINDING_NAME: Final = "pi_1-account_differs"


def token(*, signature: str = "SIGNATURE_REMOVED_BY_GOOGLE", **claims: Any) -> str:
    """Return the header that Cloud Run lets through."""
    parts = ({"alg": "RS256", "typ": "JWT"}, {"email": OPERATOR, "sub": "1", **claims})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return f"Bearer {'.'.join(encoded)}.{signature}"


class Console(Portal):
    """A world whose operator has a page."""

    def at(self, method: str, url: str, form: Mapping[str, str] | None = None, **headers: str) -> Seen | None:
        """Ask the console function. None: the process died, and nothing came back."""
        wiring.use(self.parts)
        sent = {"Authorization": token(), **{name.replace("_", "-"): value for name, value in headers.items()}}
        try:
            answer = _client("console").open(url, method=method, data=form, headers=sent)
        except Killed:
            return None
        finally:
            self._note_money()
        if answer.status_code == 500:
            self.violations.append(f"{method} {url} ended in an exception that nobody took care of")
        return Seen(answer.status_code, dict(answer.headers), answer.get_data(as_text=True))

    def look(self, suffix: str = f"/charges/{NAME}", **headers: str) -> Seen:
        """Open a page; by default that of the charge."""
        seen = self.at("GET", suffix, None, **headers)
        if seen is None:
            raise PageLost
        return seen

    def press(self, path: str, fields: Mapping[str, str] | None = None, page: Seen | None = None) -> Seen | None:
        """Press a button of the page that is open, or of the page as it is now."""
        self.acted_at.append(self.clock.now())
        mark = mark_of(page or self.look(), path)
        return self.at("POST", path, {"mark": mark, **(fields or {})})

    def done(self, path: str, fields: Mapping[str, str] | None = None, page: Seen | None = None) -> Seen:
        """Press a button, and get an answer."""
        seen = self.press(path, fields, page)
        assert seen is not None
        return seen


def mark_of(page: Seen, path: str) -> str:
    """Return what the form carries that is sent to this address."""
    found = re.findall(rf'action="{re.escape(path)}">\s*<input type="hidden" name="mark" value="([^"]*)"', page.html)
    return html.unescape(found[0]) if found else ""


def disagree(world: Console) -> None:
    """Have a charge in the ledger of which Stripe says something that nobody explains."""
    world.create(payment_method=DECLINED, description="Order 1001: two tickets, row 7", metadata={"order": "1001"})
    world.parts.charger.act(NAME, Chosen(act=Act.CANCEL, actor="caller"), version=None)
    held = world.parts.ledger.get(NAME)
    assert held is not None
    doubted = policy._discrepancy(held.charge, "paid_after_canceled", START, held.charge.payment_intent or "")
    world.parts.ledger.update(held, doubted)


def find_at_stripe(world: Console) -> None:
    """Have an audit find something that no charge can keep."""
    written: dict[str, Any] = {
        "kind": "account_differs",
        "charge": NAME,
        "payment_intent": "pi_1",
        "account": "acct_shop",
        "detail": "the charge is of the platform",
        "settled": "",
        "at": START,
    }
    world.parts.ledger.record_once(FINDING, FINDING_NAME, written)
