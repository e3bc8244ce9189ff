"""The cast: alice owns, bob is a colleague with things of his own, charlie is a stranger, and root runs the machine."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.originals.fixtures import original, original_code  # noqa: F401

# The machine may be busy with other work: slowness alone is no failure.
hypothesis_settings.register_profile("studio", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("studio")

LONGEST_FIRST = ("faults/test_harness_one", "training/test_every_family", "faults/test_harness_two", "e2e/", "faults/test_harness_postgres", "fuzz/")
"""Tests run in parallel by file; a long file that begins last is waited for by everybody."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST_FIRST) if f"tests/{name}" in item.nodeid), len(LONGEST_FIRST)))


@pytest.fixture(autouse=True)
def _own_data_dir(request: pytest.FixtureRequest, settings, tmp_path) -> None:
    """Database tests write below a folder of their own."""
    if request.node.get_closest_marker("django_db") or {"db", "transactional_db"} & set(request.fixturenames):
        settings.DATA_DIR = tmp_path / "data"
        for name in settings.MEDIA_FOLDERS:
            (settings.DATA_DIR / name).mkdir(parents=True)


@pytest.fixture
def alice(django_user_model):
    return django_user_model.objects.create_user("alice", password="alice's password")


@pytest.fixture
def bob(django_user_model):
    return django_user_model.objects.create_user("bob", password="bob's password")


@pytest.fixture
def charlie(django_user_model):
    return django_user_model.objects.create_user("charlie", password="charlie's password")


@pytest.fixture
def root(django_user_model):
    return django_user_model.objects.create_superuser("root", password="root's password")


@pytest.fixture
def alice_client(client, alice):
    client.force_login(alice)
    return client


@pytest.fixture
def dataset(db, tmp_path, alice):
    """Alice's ten tones, imported."""
    from datasets_app import services
    from datasets_app.models import Origin
    from tests.factories import write_dataset_zip

    return services.import_inline(source=write_dataset_zip(tmp_path / "tones.zip"), owner=alice, origin=Origin.UPLOADED)


@pytest.fixture
def checkpoint(db):
    """The tiny model, registered for everybody."""
    from tests.factories import tiny_model
    from training_app import storage
    from training_app.models import Checkpoint

    return storage.register_checkpoint(tiny_model(), origin=Checkpoint.Origin.IMPORTED, name="tiny")
