"""The two emulators, each started once; a missing jar fails the tests that need it and says how to get it."""

from collections.abc import Iterator

import pytest

from infra.local.datastore import DatastoreEmulator, Engine


@pytest.fixture(scope="session")
def datastore_emulator() -> Iterator[DatastoreEmulator]:
    """Google's Datastore emulator, in memory."""
    with DatastoreEmulator(Engine.DATASTORE) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[DatastoreEmulator]:
    """Google's Firestore emulator in Datastore mode."""
    with DatastoreEmulator(Engine.FIRESTORE) as emulator:
        yield emulator
