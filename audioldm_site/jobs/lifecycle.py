"""Moves jobs from status to status, and nothing else does.

Every move is one compare-and-set UPDATE: it names the status (and, for a running job, the attempt) that it expects, so of two who try
at once one wins and the other is told so. A supervisor that was given up for dead and comes back finds its attempt over.

    queued ──claim──▶ running ──finished──▶ succeeded
      ▲  ▲               │ ├───failed────▶ failed ────┐
      │  └──put_back─────┘ └───stopped───▶ cancelled ─┤
      └──────────────────────requeue──────────────────┘
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from django.apps import apps
from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models import F, FloatField, Max, Value
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Coalesce
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from audioldm_site.jobs import processes, queue
from audioldm_site.jobs.models import ACTIVE, Job, JobEvent, Status, Worker
from gpu.errors import Fault
from gpu.events import CHECKPOINT, ENDINGS, FAILED, FINISHED, PROGRESS, STOPPED, Event, EventTail, EventWriter

log = logging.getLogger(__name__)

HEARTBEAT_EVERY_S = 2.0
LOST_AFTER_S = 20.0
"""A running job whose supervisor said nothing for this long is taken from it. SQLite may hold a writer up for some seconds."""
LOST_WITH_WORKER_AFTER_S = 6.0
"""The same where the worker's main process is known to be dead: what is left of it may still be saving, and says so."""
ATTEMPTS_WITHOUT_PROGRESS = 3
ORPHAN_GRACE_S = 30.0
"""A trainer without a supervisor saves and ends by itself; this is how long it may take."""
REAPER_GRACE_S = 5.0
"""The same where the cluster's own loop has to wait for it."""
RESYNC_CHUNK = 1_000


def job_models() -> list[type[Job]]:
    return [model for model in apps.get_models() if issubclass(model, Job)]


def claim(job: Job, *, worker_name: str) -> bool:
    """queued → running, with a new attempt. False when somebody else has it, or it ended."""
    now = timezone.now()
    claimed = _move(
        job,
        (Status.QUEUED,),
        Status.RUNNING,
        attempt=F("attempt") + 1,
        attempts_without_progress=F("attempts_without_progress") + 1,
        started_at=now,
        finished_at=None,
        heartbeat_at=now,
        stop_requested_at=None,
        stop_without_saving=False,
        error_code="",
        error_detail="",
        worker_name=worker_name,
        child_pid=None,
    )
    if claimed:
        log.info("%s %s: attempt %d on %s", job.kind, job.pk, job.attempt, worker_name)
    return claimed


def heartbeat(job: Job, *, child_pid: int | None = None) -> bool:
    """Say that the job is looked after. False when this attempt is over, whoever ended it."""
    values = {"heartbeat_at": timezone.now()}
    if child_pid is not None:
        values["child_pid"] = child_pid
    return bool(_this_attempt(job).update(**values))


def record_events(job: Job, events: Sequence[Event], *, endings: Collection[str] = ENDINGS) -> int:
    """Copy events into rows, apply what they mean and end the job where they say so; all of it or nothing.

    Events that are there already are skipped, so the same batch may be recorded twice.

    Args:
        endings: which types end this attempt; what an earlier attempt ended with is history.

    Returns:
        How many were new; 0 too when this attempt is over.
    Raises:
        ValueError: a number is missing.
    """
    with transaction.atomic():
        row = _locked(job)
        if row is None or row.attempt != job.attempt or row.status not in ACTIVE:
            return 0
        fresh = _fresh(row, events)
        if not fresh:
            return 0
        _insert(job, fresh)
        values: dict = {"last_seq": fresh[-1].seq}
        if row.status == Status.RUNNING:
            values["heartbeat_at"] = timezone.now()
        if row.attempts_without_progress and _made_progress(job, fresh):
            values["attempts_without_progress"] = 0
        type(job).objects.filter(pk=job.pk).update(**values)
        job.last_seq = fresh[-1].seq
        for event in fresh:
            job.apply_event(event)
            if event.type in endings:
                _end(job, row, event)
    return len(fresh)


def request_stop(job: Job, *, save: bool = True) -> bool:
    """Ask a job to end. A waiting one is cancelled at once; a running one is asked, and may be asked again more firmly.

    Args:
        save: keep what was reached in a checkpoint first. Once False was asked for, it stays.
    """
    with transaction.atomic():
        if _move(job, (Status.QUEUED,), Status.CANCELLED, finished_at=timezone.now(), stop_requested_at=timezone.now()):
            _say(job, STOPPED, saved=False)
            return True
        values: dict = {"stop_requested_at": Coalesce(F("stop_requested_at"), Value(timezone.now()))}
        if not save:
            values["stop_without_saving"] = True
        asked = type(job).objects.filter(pk=job.pk, status=Status.RUNNING).update(**values)
    job.refresh_from_db()
    return bool(asked)


def requeue(job: Job) -> bool:
    """failed | cancelled → queued, at the end of the line. The caller enqueues it in the same transaction."""
    return _move(
        job,
        (Status.FAILED, Status.CANCELLED),
        Status.QUEUED,
        queued_at=timezone.now(),
        finished_at=None,
        stop_requested_at=None,
        stop_without_saving=False,
        error_code="",
        error_detail="",
        attempts_without_progress=0,
        worker_name="",
        child_pid=None,
    )


def put_back(job: Job, *, blameless: bool = False) -> bool:
    """running → queued at its old place in the line, and delivered anew: the machine stopped it, not a person.

    Where a person had asked for the stop as well, it is cancelled instead.

    Args:
        blameless: the attempt ended in good order (a shutdown) and does not count against the job.
    """
    with transaction.atomic():
        row = _locked(job)
        if row is None or row.status != Status.RUNNING or row.attempt != job.attempt:
            return False
        if row.stop_requested_at:
            return cancel(job)
        values: dict = {"worker_name": "", "child_pid": None, "heartbeat_at": None}
        if blameless:
            values["attempts_without_progress"] = 0
        moved = _move(job, (Status.RUNNING,), Status.QUEUED, **values)
        queue.enqueue(job)
    log.info("%s %s is back in line", job.kind, job.pk)
    return moved


def cancel(job: Job) -> bool:
    """running → cancelled, for a stop that the job itself did not confirm. Its processes must be gone."""
    with transaction.atomic():
        moved = _move(job, (Status.RUNNING,), Status.CANCELLED, finished_at=timezone.now(), child_pid=None)
        if moved:
            _say(job, STOPPED, saved=False)
    return moved


def fail(job: Job, fault: Fault) -> bool:
    """queued | running → failed, and say so in the job's events. Its processes must be gone."""
    with transaction.atomic():
        moved = _move(
            job, ACTIVE, Status.FAILED, finished_at=timezone.now(), child_pid=None, error_code=fault.code, error_detail=fault.message
        )
        if moved:
            _say(job, FAILED, **fault.as_data())
    if moved:
        log.warning("%s %s failed (%s): %s", job.kind, job.pk, fault.code, fault.message)
    return moved


def still_runs(job: Job) -> bool:
    """Refresh the job; whether the attempt that the caller knows is still running. If not, the caller has no more say in it."""
    attempt = job.attempt
    job.refresh_from_db()
    return job.status == Status.RUNNING and job.attempt == attempt


def resync(job: Job) -> bool:
    """Copy the events that a dead supervisor of this attempt did not. False when the attempt is over by now."""
    _copy_events(job, endings=ENDINGS)
    return still_runs(job)


def prepare_attempt(job: Job) -> bool:
    """Make a claimed job ready for its new process: nothing of an earlier attempt is alive, rows and file agree, no old request waits.

    Returns:
        False when the job turned out to have finished, or is somebody else's by now.
    """
    processes.end_processes(job, grace_s=ORPHAN_GRACE_S)
    (job.folder / "control").mkdir(parents=True, exist_ok=True)
    (job.folder / "control" / "stop").unlink(missing_ok=True)
    _restore_file(job)
    _copy_events(job, endings={FINISHED})
    return heartbeat(job)


def reap(*, now: datetime | None = None) -> list[Job]:
    """Take running jobs from supervisors that are gone: back in line, or failed after too many attempts without progress."""
    now = now or timezone.now()
    for model in job_models():
        # The clock was moved back: whoever is alive says so again at once, and from the others it is counted anew.
        model.objects.filter(status=Status.RUNNING, heartbeat_at__gt=now + timedelta(seconds=LOST_AFTER_S)).update(heartbeat_at=now)
    running = [job for model in job_models() for job in model.objects.filter(status=Status.RUNNING)]
    return _take_from_dead([job for job in running if _is_lost(job, now=now)])


def reap_worker(worker_name: str) -> list[Job]:
    """As `reap` for a worker that is known to be gone, without waiting for its heartbeat to grow old."""
    return _take_from_dead([job for model in job_models() for job in model.objects.filter(status=Status.RUNNING, worker_name=worker_name)])


def enqueue_forgotten(*, now: datetime | None = None, grace_s: float = 10.0) -> list[Job]:
    """Deliver waiting jobs anew that no queue entry stands for. `grace_s` leaves time to whoever executes a job by hand."""
    now = now or timezone.now()
    forgotten = [
        job
        for model in job_models()
        for job in model.objects.in_line().filter(queued_at__lt=now - timedelta(seconds=grace_s), created_at__lt=now - timedelta(seconds=grace_s))
    ]
    return [job for job in forgotten if queue.enqueue(job)] if forgotten else []


def _is_lost(job: Job, *, now: datetime) -> bool:
    silent_s = (now - job.heartbeat_at).total_seconds()
    if silent_s < LOST_WITH_WORKER_AFTER_S:
        return False
    worker = Worker.objects.filter(name=job.worker_name).first()
    return silent_s > LOST_AFTER_S or (worker is not None and queue.is_dead(worker))


def _take_from_dead(jobs: Sequence[Job]) -> list[Job]:
    for job in jobs:
        log.warning("%s %s: its worker (%s) is gone", job.kind, job.pk, job.worker_name)
        try:
            _revive(job)
        except (DatabaseError, OSError):
            log.exception("%s %s must wait", job.kind, job.pk)
        except Exception as error:
            # Whatever is wrong with one job, the others must not wait for it.
            log.exception("%s %s cannot be taken up again", job.kind, job.pk)
            processes.end_processes(job, grace_s=0)
            if still_runs(job):
                fail(job, error if isinstance(error, Fault) else Fault("internal", f"{type(error).__name__}: {error}"))
    return list(jobs)


def _revive(job: Job) -> None:
    if processes.end_worker(job):
        log.warning("%s %s: its silent worker (process %d) was killed", job.kind, job.pk, job.child_pid)
    if not resync(job):
        return
    if job.stop_requested_at:
        processes.end_processes(job, grace_s=REAPER_GRACE_S)
        if resync(job):
            cancel(job)
    elif job.attempts_without_progress >= ATTEMPTS_WITHOUT_PROGRESS:
        processes.end_processes(job, grace_s=0)
        if resync(job):
            fail(job, Fault("worker.lost", f"its worker was lost {job.attempts_without_progress} times in a row before the job got any further", operator=True))
    else:
        put_back(job)


def _move(job: Job, expected: Sequence[Status], status: Status, **values) -> bool:
    """The one compare-and-set. From `running` only for the attempt that the caller knows."""
    rows = type(job).objects.filter(pk=job.pk, status__in=expected)
    if Status.RUNNING in expected:
        rows = rows.filter(attempt=job.attempt)
    if not rows.update(status=status, **values):
        # Not refreshed: `job.attempt` must stay the caller's own.
        return False
    job.refresh_from_db()
    return True


def _this_attempt(job: Job):
    return type(job).objects.filter(pk=job.pk, status=Status.RUNNING, attempt=job.attempt)


def _locked(job: Job) -> Job | None:
    """The row as it is now, held until the transaction ends. (SQLite's IMMEDIATE transactions hold the whole database.)"""
    return type(job).objects.select_for_update(of=("self",)).filter(pk=job.pk).first()


def _fresh(row: Job, events: Sequence[Event]) -> list[Event]:
    fresh = [event for event in events if event.seq > row.last_seq]
    for expected, event in enumerate(fresh, start=row.last_seq + 1):
        if event.seq != expected:
            raise ValueError(f"event {expected} of {row.kind} {row.pk} is missing: {event.seq} came instead")
    return fresh


def _insert(job: Job, events: Sequence[Event]) -> None:
    model: type[JobEvent] = job.events.model
    model.objects.bulk_create(
        model(job_id=job.pk, seq=event.seq, attempt=event.attempt, type=event.type, at=parse_datetime(event.at), data=event.data)
        for event in events
    )


def _made_progress(job: Job, events: Sequence[Event]) -> bool:
    """Whether this attempt saved something, or got further than every one before it."""
    if any(event.type == CHECKPOINT for event in events):
        return True
    steps = [event.data["step"] for event in events if event.type == PROGRESS and "step" in event.data]
    if not steps:
        return False
    earlier = job.events.filter(type=PROGRESS, attempt__lt=job.attempt)
    best = earlier.aggregate(best=Max(Cast(KT("data__step"), FloatField())))["best"]
    return best is None or max(steps) > best


def _end(job: Job, row: Job, event: Event) -> None:
    """What an ending means for the status. A stop that nobody asked for is an interruption: its job goes on later."""
    now = timezone.now()
    if event.type == FINISHED:
        _move(job, (Status.RUNNING,), Status.SUCCEEDED, finished_at=now, child_pid=None)
    elif event.type == FAILED:
        code, detail = event.data.get("code") or "internal", event.data.get("detail") or ""
        _move(job, (Status.RUNNING,), Status.FAILED, finished_at=now, child_pid=None, error_code=code[:60], error_detail=detail)
    elif row.stop_requested_at:
        _move(job, (Status.RUNNING,), Status.CANCELLED, finished_at=now, child_pid=None)
    else:
        put_back(job, blameless=True)


def _say(job: Job, event_type: str, /, **data) -> None:
    """Append one event in the job's name: to the file first, then as a row. Its own process must be gone.

    A full disk must not keep a job from ending: then the row alone says it, and `resync` repeats it in the file.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        _restore_file(job)
        with EventWriter(job.folder, attempt=job.attempt) as writer:
            writer.write(event_type, **data)
        fresh = _fresh(job, EventTail(job.folder, after=job.last_seq).read())
    except OSError:
        log.exception("%s %s: its events file cannot be written", job.kind, job.pk)
        fresh = [Event(seq=job.last_seq + 1, attempt=job.attempt, type=event_type, at=timezone.now().isoformat(timespec="milliseconds"), data=data)]
    _insert(job, fresh)
    type(job).objects.filter(pk=job.pk).update(last_seq=fresh[-1].seq)
    job.last_seq = fresh[-1].seq
    job.apply_event(fresh[-1])


def _copy_events(job: Job, *, endings: Collection[str]) -> None:
    tail = EventTail(job.folder, after=job.last_seq)
    while events := tail.read(limit=RESYNC_CHUNK):
        record_events(job, events, endings=endings)


def _restore_file(job: Job) -> None:
    """Give the file back the rows that it lost, e.g. in a power cut."""
    with EventWriter(job.folder, attempt=job.attempt) as writer:
        if writer.seq >= job.last_seq:
            return
        for row in job.events.filter(seq__gt=writer.seq).order_by("seq").iterator():
            event = Event(seq=row.seq, attempt=row.attempt, type=row.type, at=row.at.isoformat(timespec="milliseconds"), data=row.data)
            writer._append((event.to_json() + "\n").encode())
            writer.seq = row.seq
