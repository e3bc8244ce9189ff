from __future__ import annotations

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from audioldm_site.environment import Environment, database, filesystem, is_on_network

MOUNTS = """overlay / overlay rw 0 0
/dev/sda1 /data ext4 rw 0 0
mfs#host:9421 /workspace fuse rw 0 0
server:/export /data/shared\\040folder nfs4 rw 0 0
"""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "eighty", "PORT ('eighty') must be a whole number from 1 to 65535"),
        ("PORT", "70000", "PORT (70000) must be from 1 to 65535"),
        ("DEBUG", "maybe", "DEBUG ('maybe') must be true or false"),
        ("PRICE_PER_HOUR", "-1", "PRICE_PER_HOUR (-1.0) must be at least 0.0"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL ('LOUD') must be one of DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(name, value, words):
    with pytest.raises(ImproperlyConfigured) as caught:
        Environment.read({name: value})

    assert str(caught.value) == words


def test_a_local_site_answers_to_local_names_only():
    assert Environment.read({}).allowed_hosts == ["127.0.0.1", "localhost", "[::1]"]


def test_a_public_site_answers_to_any_name_until_told_which():
    assert Environment.read({"HOST": "0.0.0.0"}).allowed_hosts[0] == "*"


def test_a_health_check_from_inside_is_always_answered():
    hosts = Environment.read({"HOST": "0.0.0.0", "ALLOWED_HOSTS": "studio.example"}).allowed_hosts

    assert hosts == ["studio.example", "127.0.0.1", "localhost", "[::1]"]


def test_a_database_address_is_read():
    found = database("postgres://al%40ice:se%2Fcret@db.example:5433/studio", data_dir=Path("/data"))

    assert (found["USER"], found["PASSWORD"], found["HOST"], found["PORT"], found["NAME"]) == ("al@ice", "se/cret", "db.example", 5433, "studio")


@pytest.mark.parametrize("url", ["mysql://host/name", "postgres://host", "nonsense"])
def test_another_database_is_refused(url):
    with pytest.raises(ImproperlyConfigured, match="DATABASE_URL"):
        database(url, data_dir=Path("/data"))


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [("/data/db", "ext4", False), ("/workspace/studio", "fuse", True), ("/data/shared folder/x", "nfs4", True), ("/tmp", "overlay", False)],
)
def test_a_network_volume_is_recognised(tmp_path, monkeypatch, path, kind, network):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert filesystem(Path(path), mounts=mounts) == kind

    monkeypatch.setattr("audioldm_site.environment.filesystem", lambda path: kind)
    assert is_on_network(Path(path)) == network


def test_a_network_volume_gets_no_shared_memory_journal(monkeypatch):
    monkeypatch.setattr("audioldm_site.environment.is_on_network", lambda path: True)

    assert "journal_mode=TRUNCATE" in database("", data_dir=Path("/workspace"))["OPTIONS"]["init_command"]
