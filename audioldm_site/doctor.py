"""The state of everything, as findings: what it is, and whether it is as it should be."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from django.core.checks import ERROR, run_checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from audioldm_site import hardware, machine
from audioldm_site.environment import filesystem
from audioldm_site.faults import explain
from audioldm_site.jobs.lifecycle import job_models
from audioldm_site.jobs.models import Status
from training_app.models import Checkpoint

PACKAGES = ("torch", "pytorch-lightning", "diffusers", "transformers", "peft", "Django", "channels", "daphne", "django-q2")
OK, WARNING, FAILING = "ok", "warning", "failing"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line on the screen.

    Args:
        state: `ok`, `warning` (works, but look at it) or `failing`.
        code: stable, where the state is not `ok`.
        hint: what to do, where `audioldm_site.faults` has no words for the code.
    """

    name: str
    value: str
    state: str = OK
    code: str = ""
    hint: str = ""

    @property
    def remedy(self) -> str:
        return self.hint or (explain(self.code).remedy if self.code else "")


def findings() -> list[Finding]:
    found = [_versions(), _data_dir(), _device()]
    try:
        found += [_database(), *_workers(), _jobs(), _models()]
    except DatabaseError as error:
        found.append(Finding(name="database", value=str(error), state=FAILING, code="database.unusable"))
    return [*found, *_checks()]


def _versions() -> Finding:
    installed, missing = [f"Python {platform.python_version()}"], []
    for package in PACKAGES:
        try:
            installed.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return Finding(name="versions", value=f"missing: {', '.join(missing)}", state=FAILING, code="packages.missing")
    return Finding(name="versions", value=", ".join(installed))


def _data_dir() -> Finding:
    disk = machine.disk()
    value = f"{disk.folder}, {disk.free_bytes / 1e9:.1f} of {disk.total_bytes / 1e9:.1f} GB free, {filesystem(disk.folder) or 'unknown file system'}"
    if not os.access(disk.folder, os.W_OK | os.X_OK):
        return Finding(name="data", value=value, state=FAILING, code="data.not_writable")
    if disk.is_low:
        return Finding(name="data", value=value, state=FAILING, code="disk.low")
    if disk.is_containers_own:
        return Finding(name="data", value=f"{value}, not a volume", state=WARNING, code="data.not_a_volume")
    return Finding(name="data", value=value)


def _device() -> Finding:
    found = hardware.gpus()
    if not found:
        return Finding(name="device", value=hardware.device())
    words = [f"{gpu.name} ({gpu.free_bytes / 2**30:.0f} of {gpu.memory_bytes / 2**30:.0f} GB free, driver {gpu.driver})" for gpu in found]
    return Finding(name="device", value=", ".join(words))


def _database() -> Finding:
    executor = MigrationExecutor(connection)
    pending = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode")
            value = f"SQLite {connection.Database.sqlite_version}, journal {cursor.fetchone()[0]}"
    else:
        value = f"PostgreSQL {connection.pg_version // 10000}"
    if pending:
        return Finding(name="database", value=f"{value}, {pending} migrations to apply", state=FAILING, code="database.migrations")
    return Finding(name="database", value=value)


def _workers() -> Iterator[Finding]:
    for queue in machine.queue_states():
        name = f"{queue.queue} worker"
        if queue.alive:
            yield Finding(name=name, value=f"alive, {queue.device}")
        else:
            value = f"last seen {queue.seen_at:%Y-%m-%d %H:%M:%S} UTC" if queue.seen_at else "none"
            yield Finding(name=name, value=value, state=FAILING, code="worker.missing")


def _jobs() -> Finding:
    counts = {status: sum(model.objects.filter(status=status).count() for model in job_models()) for status in (Status.RUNNING, Status.QUEUED)}
    return Finding(name="jobs", value=f"{counts[Status.RUNNING]} running, {counts[Status.QUEUED]} waiting")


def _models() -> Finding:
    usable = Checkpoint.objects.usable()
    builtin = usable.filter(origin=Checkpoint.Origin.BUILTIN).count()
    value = f"{usable.count()} usable checkpoints, {builtin} built in"
    if not usable.exists():
        return Finding(name="models", value=value, state=FAILING, code="checkpoint.none")
    return Finding(name="models", value=value)


def _checks() -> Iterator[Finding]:
    for message in run_checks(include_deployment_checks=False):
        state = FAILING if message.level >= ERROR else WARNING
        yield Finding(name="settings", value=message.msg, state=state, code=message.id or "settings", hint=message.hint or "")
