"""The secrets that sign what is sent out."""

import pytest

from shared import links
from shared.settings import Settings
from shared.signing import OUTCOMES, as_text, outcome_keys, secrets_of


def test_the_secrets_that_are_set_are_used_in_their_order() -> None:
    """The first one signs."""
    settings = Settings(stripe_api_key="sk_test_a", signing_secrets=("whsec_bmV3IG9uZQ==", "whsec_b2xkIG9uZQ=="))
    assert secrets_of(settings) == (b"new one", b"old one")


@pytest.mark.parametrize("text", ["plain words", "whsec_no base64!", "b2xkIG9uZQ=="])
def test_a_text_without_base64_marked_as_such_stands_for_its_own_bytes(text: str) -> None:
    """Nothing is guessed."""
    assert secrets_of(Settings(signing_secrets=(text,))) == (text.encode(),)


def test_without_secrets_one_is_derived_from_the_api_key() -> None:
    """The same in every function of a deployment, another for another key, and never the key itself."""
    (derived,) = secrets_of(Settings(stripe_api_key="sk_test_a"))
    assert (derived,) == secrets_of(Settings(stripe_api_key="sk_test_a"))
    assert (derived,) != secrets_of(Settings(stripe_api_key="sk_test_b"))
    assert len(derived) == 32
    assert b"sk_test_a" not in derived


def test_the_derived_secret_is_the_same_in_every_release() -> None:
    """Or else links that are out would die with an upgrade."""
    (derived,) = secrets_of(Settings(stripe_api_key="sk_test_a"))
    assert derived.hex() == "0d82164722a1222eb01ff6e6151485cad5a91bdaed7c224671b5e7f431c24e50"


def test_outcomes_have_a_key_of_their_own_for_each_secret() -> None:
    """In the same order, none of them a secret, and the same in every release: receivers have it in their settings."""
    settings = Settings(signing_secrets=("whsec_bmV3IG9uZQ==", "whsec_b2xkIG9uZQ=="))
    new, old = outcome_keys(settings)
    assert not {new, old} & set(secrets_of(settings))
    assert (old,) == outcome_keys(Settings(signing_secrets=("whsec_b2xkIG9uZQ==",)))
    assert new.hex() == "19aae4e9e0bcfdd516ce2e9f529fb5c79f3d7dee923575d85701df6fc9603df9"
    assert OUTCOMES not in {links.LINK.encode(), links.FORM.encode()}


def test_a_receiver_is_given_its_key_in_the_form_that_libraries_take() -> None:
    """Read back, it is the same."""
    (key,) = outcome_keys(Settings(stripe_api_key="sk_test_a"))
    assert secrets_of(Settings(signing_secrets=(as_text(key),))) == (key,)
