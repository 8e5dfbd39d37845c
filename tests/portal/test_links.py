"""A link names one charge, cannot be guessed or changed, and ends."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner

from shared import links, preview
from shared.charge import charge_id
from shared.links import FORM_LIFE, LINK_LIFE, LinkExpired, LinkInvalid
from shared.settings import Settings

NOW: Final = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
NAME: Final = charge_id(None, "order-1001")
SETTINGS: Final = Settings(portal_url="https://pay.example.com", signing_secrets=("one",))


def token(settings: Settings = SETTINGS, name: str = NAME, at: datetime = NOW) -> str:
    """Return the token of a link made then."""
    url = links.customer_url(settings, name, at)
    assert url is not None
    address, _, found = url.rpartition("/")
    assert address == settings.portal_url
    return found


def test_a_link_leads_to_the_charge_that_it_was_made_for() -> None:
    """And the same one all day, so that a charge that is read twice reads the same."""
    assert links.read_token(SETTINGS, token(), NOW) == NAME
    assert token() == token(at=NOW + timedelta(hours=14))
    assert token() != token(at=NOW + timedelta(days=1))


def test_without_a_page_there_is_no_link() -> None:
    """PORTAL_URL is not set."""
    assert links.customer_url(Settings(signing_secrets=("one",)), NAME, NOW) is None


def test_a_link_ends_after_thirty_days() -> None:
    """Counted from the day on which it was made."""
    made = NOW.replace(hour=0, minute=0)
    assert links.read_token(SETTINGS, token(), made + LINK_LIFE) == NAME
    with pytest.raises(LinkExpired):
        links.read_token(SETTINGS, token(), made + LINK_LIFE + timedelta(seconds=1))


def test_a_link_from_a_machine_whose_clock_is_ahead_is_good() -> None:
    """Made just after midnight there, opened just before midnight here."""
    assert links.read_token(SETTINGS, token(at=NOW + timedelta(days=1)), NOW) == NAME


def test_a_secret_can_be_replaced_without_ending_the_links_that_are_out() -> None:
    """The first signs, all verify; once the old one is gone, so are its links."""
    both = Settings(portal_url="https://pay.example.com", signing_secrets=("two", "one"))
    new = Settings(portal_url="https://pay.example.com", signing_secrets=("two",))
    assert links.read_token(both, token(), NOW) == NAME
    assert links.read_token(new, token(both), NOW) == NAME
    with pytest.raises(LinkInvalid):
        links.read_token(new, token(), NOW)


def test_where_no_secret_is_set_one_is_derived_from_the_api_key() -> None:
    """Another deployment's links do not open ours."""
    ours = Settings(portal_url="https://pay.example.com", stripe_api_key="sk_test_ours")
    theirs = Settings(portal_url="https://pay.example.com", stripe_api_key="sk_test_theirs")
    assert links.read_token(ours, token(ours), NOW) == NAME
    with pytest.raises(LinkInvalid):
        links.read_token(theirs, token(ours), NOW)


@pytest.mark.parametrize("variable", ["SIGNING_SECRETS", "STRIPE_API_KEY"])
def test_what_receivers_of_outcomes_are_given_makes_no_link_and_no_form(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for the secret, as text or as bytes, or for the very key that signs. The id of a charge they are told."""
    monkeypatch.delenv("SIGNING_SECRETS", raising=False)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_ours")
    monkeypatch.setenv(variable, "sk_test_ours_alone")
    ours = Settings.from_environment({variable: "sk_test_ours_alone"})
    portal = Settings(
        portal_url="https://pay.example.com",
        signing_secrets=ours.signing_secrets,
        stripe_api_key=ours.stripe_api_key,
    )
    assert links.read_token(portal, token(portal), NOW) == NAME
    given = CliRunner().invoke(preview.notices, ["secret"]).output.strip()
    bare = given.removeprefix("whsec_")
    for secret in (given, bare):
        forger = Settings(portal_url="https://pay.example.com", signing_secrets=(secret,), stripe_api_key=secret)
        with pytest.raises(LinkInvalid):
            links.read_token(portal, token(forger), NOW)
        with pytest.raises(LinkInvalid):
            links.read_form_mark(portal, links.form_mark(forger, "seen", NOW), NOW)
    signer = TimestampSigner(base64.b64decode(bare), key_derivation="none", digest_method=hashlib.sha256)
    signed = signer.sign(token(portal).partition(".")[0]).decode()
    with pytest.raises(LinkInvalid):
        links.read_token(portal, signed, NOW)
    with pytest.raises(LinkInvalid):
        links.read_form_mark(portal, signed, NOW)


@given(at=st.integers(0, 200), new=st.characters(codec="utf-8"))
def test_a_link_that_was_changed_opens_no_other_charge(at: int, new: str) -> None:
    """Whatever is put in its place, wherever."""
    good = token()
    at %= len(good)
    changed = good[:at] + new + good[at + 1 :]
    try:
        found = links.read_token(SETTINGS, changed, NOW)
    except (LinkInvalid, LinkExpired):
        return
    assert found == NAME  # Base64 has more than one way to write the same bytes.


@given(text=st.text())
def test_nothing_but_a_link_is_a_link(text: str) -> None:
    """Neither any text, nor any text in the form of one."""
    for made_up in (text, f"{text}.{text}.{text}", f"{token().rpartition('.')[0]}.{text}"):
        with pytest.raises(LinkInvalid):
            links.read_token(SETTINGS, made_up, NOW)


def test_the_id_of_a_charge_makes_no_link() -> None:
    """Ids are in logs and in callers' hands; links are the customer's alone."""
    for made_up in (NAME, f"{NAME}.x.y", token().partition(".")[0]):
        with pytest.raises(LinkInvalid):
            links.read_token(SETTINGS, made_up, NOW)


@pytest.mark.parametrize("value", ["", "AAAA", "!!!!", "A" * 28, "A"])
def test_what_we_signed_for_something_else_is_no_link(value: str) -> None:
    """Signed by us, and not the id of a charge."""
    signed = links._Signer(SETTINGS, links.LINK, NOW).sign(value).decode()
    with pytest.raises(LinkInvalid):
        links.read_token(SETTINGS, signed, NOW)


def test_a_forms_mark_says_what_its_page_showed_and_ends_sooner() -> None:
    """It is no link, and a link is no mark."""
    mark = links.form_mark(SETTINGS, "what was seen", NOW)
    assert links.read_form_mark(SETTINGS, mark, NOW + FORM_LIFE) == "what was seen"
    with pytest.raises(LinkExpired):
        links.read_form_mark(SETTINGS, mark, NOW + FORM_LIFE + timedelta(seconds=1))
    for other in (token(), "", mark + "x", mark.replace("seen", "eaten")):
        with pytest.raises(LinkInvalid):
            links.read_form_mark(SETTINGS, other, NOW)
    with pytest.raises(LinkInvalid):
        links.read_token(SETTINGS, links.form_mark(SETTINGS, NAME, NOW), NOW)
