"""The queue's rows, handed out one at a time and for a lease that the living renew.

Stock django-q2 hands a worker up to three tasks at once, and locks each for a fixed time: too short and a long task runs five times,
too long and a crash strands it. Here a cluster holds one task, for `LEASE_S` that its main process renews while the task runs.
"""

from __future__ import annotations

import multiprocessing
from datetime import UTC, datetime, timedelta
from time import sleep

from django.db.models import Q
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.conf import Conf

LEASE_S = 15
FIRST_IN_LINE = datetime(2000, 1, 1, tzinfo=UTC)


class LeaseBroker(ORM):
    """django-q2's ORM broker with a lease. Waiting rows are ordered by `lock`, the moment since which they wait.

    Args:
        waiting_since: place in line of what is enqueued; None for the end.
    """

    def __init__(self, list_key: str | None = None, *, waiting_since: datetime | None = None) -> None:
        super().__init__(list_key)
        self.waiting_since = waiting_since
        # Shared by the processes that one cluster forks; 0 while nothing is under way.
        self._held = multiprocessing.Value("q", 0, lock=False)

    @property
    def held(self) -> int:
        return self._held.value

    def enqueue(self, task: str) -> int:
        lock = self.waiting_since or timezone.now()
        return self.get_connection().create(key=self.list_key, payload=task, lock=lock).pk

    def dequeue(self) -> list[tuple[int, str]] | None:
        """One task that nobody holds, or None after a short sleep; always None while this cluster has one under way."""
        if not self.held:
            for row in self.get_connection().filter(_is_free(), key=self.list_key).order_by("lock", "pk")[:3]:
                if self.get_connection().filter(pk=row.pk, lock=row.lock).update(lock=_lease_end()):
                    self._held.value = row.pk
                    return [(row.pk, row.payload)]
        sleep(Conf.POLL)
        return None

    def renew(self) -> None:
        if self.held:
            self.get_connection().filter(pk=self.held).update(lock=_lease_end())

    def release(self) -> None:
        """Put the held task back at the head of the line. Where the database is away its lease ends by itself; renewed it would be held for ever."""
        held, self._held.value = self.held, 0
        if held:
            self.get_connection().filter(pk=held).update(lock=FIRST_IN_LINE)

    def delete(self, task_id: int) -> None:
        super().delete(task_id)
        if task_id == self.held:
            self._held.value = 0


def _is_free() -> Q:
    """Rows whose moment has come, and those whose moment no lease can have set: the clock was moved back since they were put in line."""
    now = timezone.now()
    return Q(lock__lte=now) | Q(lock__gt=now + timedelta(seconds=2 * LEASE_S))


def _lease_end() -> datetime:
    return timezone.now() + timedelta(seconds=LEASE_S)
