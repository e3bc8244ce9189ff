from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from django_q.models import OrmQ

from audioldm_site.jobs import lifecycle, queue
from audioldm_site.jobs.models import Status, Worker
from gpu.errors import Fault
from gpu.events import Event, read_events
from tests.site.conftest import checkpoint_data
from training_app.models import TrainingRun


@pytest.fixture
def running(run) -> TrainingRun:
    assert lifecycle.claim(run, worker_name="w1")
    return run


def saved(run: TrainingRun) -> list[str]:
    return list(run.events.values_list("type", flat=True))


def on_disk(run: TrainingRun) -> list[str]:
    return [event.type for event in read_events(run.folder)]


def grow_old(run: TrainingRun, *, seconds: float) -> None:
    TrainingRun.objects.filter(pk=run.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=seconds))


def lose(run: TrainingRun) -> None:
    """Claim it and let its worker vanish."""
    assert lifecycle.claim(run, worker_name="lost")
    grow_old(run, seconds=60)
    lifecycle.reap()
    run.refresh_from_db()


# --- claim


def test_a_waiting_job_is_claimed_once(run):
    other = TrainingRun.objects.get(pk=run.pk)

    assert lifecycle.claim(run, worker_name="w1")
    assert not lifecycle.claim(other, worker_name="w2")

    run.refresh_from_db()
    assert (run.status, run.attempt, run.worker_name) == (Status.RUNNING, 1, "w1")
    assert run.started_at and run.heartbeat_at


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
def test_an_ended_job_is_not_claimed(run, status):
    TrainingRun.objects.filter(pk=run.pk).update(status=status)

    assert not lifecycle.claim(run, worker_name="w1")


# --- events


def test_events_become_rows_in_order(running, say):
    events = [say("started", step=0, max_steps=10), say("progress", step=1, loss=0.5)]

    assert lifecycle.record_events(running, events) == 2

    running.refresh_from_db()
    assert saved(running) == ["started", "progress"]
    assert (running.last_seq, running.global_step) == (2, 1)


def test_events_recorded_twice_are_there_once(running, say):
    events = [say("progress", step=1), say("progress", step=2)]
    lifecycle.record_events(running, events[:1])

    assert lifecycle.record_events(running, events) == 1
    assert lifecycle.record_events(running, events) == 0

    assert running.events.count() == 2


def test_a_missing_number_is_refused_and_nothing_is_kept(running, say):
    say("progress", step=1)
    later = say("progress", step=2)

    with pytest.raises(ValueError, match="event 1 of training"):
        lifecycle.record_events(running, [later])

    assert running.events.count() == 0


def test_a_batch_is_recorded_whole_or_not_at_all(running, say, monkeypatch):
    def refuse(self, event):
        raise IntegrityError("something else is wrong")

    monkeypatch.setattr(TrainingRun, "apply_event", refuse)
    with pytest.raises(IntegrityError):
        lifecycle.record_events(running, [say("progress", step=1)])

    running.refresh_from_db()
    assert (running.events.count(), running.last_seq) == (0, 0)


@pytest.mark.parametrize(("ending", "data", "status"), [("finished", {}, Status.SUCCEEDED), ("failed", {"code": "disk.full", "detail": "no room"}, Status.FAILED)])
def test_an_ending_ends_the_job(running, say, ending, data, status):
    lifecycle.record_events(running, [say("progress", step=1), say(ending, **data)])

    running.refresh_from_db()
    assert running.status == status
    assert running.finished_at
    assert (running.error_code, running.error_detail) == (data.get("code", ""), data.get("detail", ""))


def test_a_stop_that_was_asked_for_cancels(running, say):
    lifecycle.request_stop(running)
    lifecycle.record_events(running, [say("stopped", step=3, saved=True)])

    running.refresh_from_db()
    assert running.status == Status.CANCELLED


def test_a_stop_that_nobody_asked_for_puts_the_job_back_in_line(running, say):
    lifecycle.record_events(running, [say("stopped", step=3, saved=True)])

    running.refresh_from_db()
    assert running.status == Status.QUEUED
    assert [entry.name() for entry in OrmQ.objects.all()] == [f"training {running.pk}"]


def test_a_supervisor_whose_attempt_is_over_changes_nothing(running, say):
    ghost = TrainingRun.objects.get(pk=running.pk)
    lose_and_claim_again(running)

    assert lifecycle.record_events(ghost, [say("failed", code="internal", detail="")]) == 0
    assert not lifecycle.heartbeat(ghost)
    assert not lifecycle.fail(ghost, Fault("internal", "too late"))

    running.refresh_from_db()
    assert (running.status, running.attempt) == (Status.RUNNING, 2)


def lose_and_claim_again(run: TrainingRun) -> None:
    grow_old(run, seconds=60)
    lifecycle.reap()
    run.refresh_from_db()
    assert lifecycle.claim(run, worker_name="w2")


# --- stop, requeue, fail


def test_a_waiting_job_is_cancelled_at_once_and_says_so(run):
    assert lifecycle.request_stop(run)

    assert run.status == Status.CANCELLED
    assert saved(run) == on_disk(run) == ["stopped"]
    assert not lifecycle.claim(run, worker_name="w1")


def test_a_running_job_is_asked_to_stop(running):
    assert lifecycle.request_stop(running)

    assert running.status == Status.RUNNING
    assert running.stop_requested_at
    assert not running.stop_without_saving


def test_a_stop_can_be_made_firmer_but_not_softer(running):
    lifecycle.request_stop(running, save=True)
    lifecycle.request_stop(running, save=False)
    lifecycle.request_stop(running, save=True)

    assert running.stop_without_saving


def test_an_ended_job_cannot_be_stopped(running, say):
    lifecycle.record_events(running, [say("finished")])

    assert not lifecycle.request_stop(running)


def test_a_failed_job_goes_back_to_the_end_of_the_line(running):
    lifecycle.fail(running, Fault("disk.full", "no room"))
    before = timezone.now()

    assert lifecycle.requeue(running)

    assert (running.status, running.error_code, running.error_detail) == (Status.QUEUED, "", "")
    assert running.queued_at >= before
    assert not lifecycle.requeue(running)


def test_a_failure_is_an_event_too(running):
    assert lifecycle.fail(running, Fault("process.died", "killed"))
    assert not lifecycle.fail(running, Fault("process.died", "again"))

    assert (running.status, running.error_code) == (Status.FAILED, "process.died")
    assert saved(running) == on_disk(running) == ["failed"]


def test_a_job_fails_even_when_its_file_cannot_be_written(running):
    (running.folder / "events.jsonl").mkdir()

    assert lifecycle.fail(running, Fault("disk.full", "no room", operator=True))

    running.refresh_from_db()
    assert (running.status, saved(running)) == (Status.FAILED, ["failed"])


def test_rows_that_the_file_lost_are_written_back_before_the_next_attempt(running, say):
    lifecycle.record_events(running, [say("started", step=0, max_steps=10), say("progress", step=1)])
    (running.folder / "events.jsonl").write_text("")

    assert lifecycle.prepare_attempt(running)

    assert on_disk(running) == ["started", "progress"]
    assert list(read_events(running.folder))[1].data == {"step": 1}


def test_events_that_nobody_copied_are_copied_before_the_next_attempt(running, say):
    say("progress", step=1)
    say("failed", code="internal", detail="of an earlier attempt")

    assert lifecycle.prepare_attempt(running)

    running.refresh_from_db()
    assert (running.status, saved(running)) == (Status.RUNNING, ["progress", "failed"])


def test_a_job_that_had_finished_unseen_is_not_run_again(running, say):
    say("finished")

    assert not lifecycle.prepare_attempt(running)

    running.refresh_from_db()
    assert running.status == Status.SUCCEEDED


def test_an_old_stop_does_not_stop_the_next_attempt(running):
    (running.folder / "control").mkdir()
    (running.folder / "control" / "stop").write_text("now")

    lifecycle.prepare_attempt(running)

    assert not (running.folder / "control" / "stop").exists()


# --- reap


def test_a_job_with_a_fresh_heartbeat_is_left_alone(running):
    grow_old(running, seconds=lifecycle.LOST_AFTER_S - 5)

    assert lifecycle.reap() == []


def test_a_silent_job_goes_back_in_line(running):
    grow_old(running, seconds=lifecycle.LOST_AFTER_S + 1)

    assert lifecycle.reap() == [running]

    running.refresh_from_db()
    assert running.status == Status.QUEUED
    assert OrmQ.objects.count() == 1


def test_a_job_whose_worker_is_known_to_be_dead_is_taken_sooner(running):
    queue.seen(name="w1", queue="training")
    Worker.objects.update(pid=2**22 - 1)
    grow_old(running, seconds=lifecycle.LOST_WITH_WORKER_AFTER_S + 1)

    assert lifecycle.reap() == [running]


def test_what_a_dead_supervisor_did_not_copy_is_copied(running, say):
    say("progress", step=7)
    say("finished")
    grow_old(running, seconds=60)

    lifecycle.reap()

    running.refresh_from_db()
    assert (running.status, running.global_step) == (Status.SUCCEEDED, 7)


def test_a_lost_job_that_was_to_stop_is_cancelled(running):
    lifecycle.request_stop(running)
    grow_old(running, seconds=60)

    lifecycle.reap()

    running.refresh_from_db()
    assert (running.status, saved(running)) == (Status.CANCELLED, ["stopped"])


def test_three_losses_without_progress_are_enough(run):
    for _ in range(2):
        lose(run)
        assert run.status == Status.QUEUED
    lose(run)

    assert (run.status, run.error_code) == (Status.FAILED, "worker.lost")


@pytest.mark.parametrize("sign", ["checkpoint", "step"])
def test_progress_forgives_earlier_losses(run, say, sign):
    for number in range(1, 6):
        lifecycle.claim(run, worker_name="lost")
        say("checkpoint", **checkpoint_data(number)) if sign == "checkpoint" else say("progress", step=number)
        grow_old(run, seconds=60)
        lifecycle.reap()
        run.refresh_from_db()

    assert (run.status, run.attempt) == (Status.QUEUED, 5)


def test_repeating_the_same_steps_is_no_progress(run, say):
    for _ in range(3):
        assert lifecycle.claim(run, worker_name="lost")
        say("progress", step=5)
        lifecycle.resync(run)
        grow_old(run, seconds=60)
        lifecycle.reap()
        run.refresh_from_db()
        if run.status == Status.FAILED:
            break
    else:
        lose(run)

    assert run.error_code == "worker.lost"


def test_one_broken_job_does_not_keep_the_others_waiting(running, alice, base_checkpoint):
    other = TrainingRun(owner=alice, name="other", dataset_name="d", base_checkpoint=base_checkpoint, config={"max_train_steps": 1})
    other.folder.mkdir()
    other.save()
    lifecycle.claim(other, worker_name="w2")
    (running.folder / "events.jsonl").write_text('{"not": "an event"}\n')
    for run in (running, other):
        grow_old(run, seconds=60)

    lifecycle.reap()

    running.refresh_from_db()
    other.refresh_from_db()
    assert (running.status, other.status) == (Status.FAILED, Status.QUEUED)


# --- queue


def test_a_job_stands_in_line_once(run):
    assert queue.enqueue(run)
    assert not queue.enqueue(run)

    assert OrmQ.objects.count() == 1


def test_a_rolled_back_job_leaves_no_queue_entry(run):
    with pytest.raises(RuntimeError), transaction.atomic():
        queue.enqueue(run)
        raise RuntimeError

    assert not OrmQ.objects.exists()


def test_a_job_without_an_entry_is_enqueued_after_a_while(run):
    assert lifecycle.enqueue_forgotten() == []

    assert lifecycle.enqueue_forgotten(now=timezone.now() + timedelta(seconds=11)) == [run]
    assert lifecycle.enqueue_forgotten(now=timezone.now() + timedelta(seconds=11)) == []


def test_a_job_that_was_put_back_keeps_its_place(running, alice, base_checkpoint):
    later = TrainingRun(owner=alice, name="later", dataset_name="d", base_checkpoint=base_checkpoint, config={})
    later.save()
    queue.enqueue(later)

    lifecycle.put_back(running)

    first = OrmQ.objects.order_by("lock").first()
    assert first.name() == f"training {running.pk}"


def test_an_unknown_queue_is_refused():
    with pytest.raises(ValueError, match="sorting"):
        queue.enqueue_call("sorting", "os.getcwd")


def test_workers_count_as_alive_while_they_are_seen(db):
    assert not queue.workers_alive("training")

    queue.seen(name="w", queue="training")
    assert queue.workers_alive("training")
    assert not queue.workers_alive("generation")

    Worker.objects.update(seen_at=timezone.now() - timedelta(seconds=queue.ALIVE_FOR_S + 1))
    assert not queue.workers_alive("training")


def test_events_survive_the_way_through_the_database(running):
    event = Event(seq=1, attempt=1, type="progress", at="2026-01-01T00:00:00.123+00:00", data={"step": 1, "loss": None})

    lifecycle.record_events(running, [event])

    row = running.events.get()
    assert row.as_message() == {"seq": 1, "attempt": 1, "type": "progress", "at": "2026-01-01T00:00:00.123000+00:00", "data": {"step": 1, "loss": None}}
