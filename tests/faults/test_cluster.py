"""A queue's processes, killed at every joint."""

from __future__ import annotations

import signal
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.utils import timezone
from django_q.models import OrmQ

from audioldm_site.jobs import queue
from audioldm_site.jobs.broker import LeaseBroker
from audioldm_site.jobs.models import Status
from tests.faults.conftest import assert_whole, family, is_running, kill, reached, status_is, steps_of, the_trainer, the_worker, wait_for

pytestmark = pytest.mark.faults


def test_a_run_in_line_is_done(make_run, start_cluster) -> None:
    run = make_run()
    start_cluster()

    wait_for(status_is(run, Status.SUCCEEDED))

    assert steps_of(run, 1) == list(range(1, 21))
    assert_whole(run)
    wait_for(lambda: not OrmQ.objects.exists())


def test_a_run_delivered_twice_runs_once(make_run, start_cluster) -> None:
    run = make_run()
    queue.enqueue_call("training", "tests.faults.tasks.run_training", str(run.pk))
    queue.enqueue_call("training", "tests.faults.tasks.run_training", str(run.pk))
    start_cluster()

    wait_for(lambda: not OrmQ.objects.exists())

    run.refresh_from_db()
    assert run.status == Status.SUCCEEDED
    assert run.attempt == 1


def test_a_killed_trainer_is_said_to_have_died(make_run, start_cluster) -> None:
    run = make_run(steps=1000)
    start_cluster()
    wait_for(reached(run, 3))

    kill(the_trainer(run))
    wait_for(status_is(run, Status.FAILED))

    assert run.error_code == "process.died"
    assert "memory" in run.error_detail
    assert_whole(run)


def test_a_run_whose_worker_is_killed_goes_on_where_it_was(make_run, start_cluster) -> None:
    run = make_run(steps=100)
    cluster = start_cluster()
    wait_for(reached(run, 5))
    trainer = the_trainer(run)

    kill(the_worker(run))
    wait_for(status_is(run, Status.SUCCEEDED))

    assert run.attempt == 2
    assert not is_running(trainer)
    assert steps_of(run, 2)[0] == steps_of(run, 1)[-1] + 1
    assert_whole(run)
    assert is_running(cluster.pid)


def test_a_run_whose_cluster_is_killed_goes_on_in_the_next(make_run, start_cluster) -> None:
    run = make_run(steps=80)
    cluster = start_cluster()
    wait_for(reached(run, 5))
    children = family(cluster.pid)

    kill(cluster.pid)
    start_cluster()
    wait_for(status_is(run, Status.SUCCEEDED))

    assert run.attempt == 2
    assert_whole(run)
    wait_for(lambda: not any(map(is_running, children)))


def test_a_run_goes_on_after_everything_was_killed_at_once(make_run, start_cluster) -> None:
    run = make_run(steps=100, save_every=10)
    cluster = start_cluster()
    wait_for(reached(run, 15))

    for pid in [cluster.pid, *family(cluster.pid)]:
        kill(pid)
    start_cluster()
    wait_for(status_is(run, Status.SUCCEEDED))

    assert run.attempt == 2
    assert steps_of(run, 2)[0] % 10 == 1
    assert_whole(run)


@pytest.mark.parametrize("position", ["first", "last"])
def test_a_killed_idle_child_does_not_stop_the_queue(make_run, start_cluster, position) -> None:
    cluster = start_cluster()
    wait_for(lambda: len(family(cluster.pid)) >= 3)

    kill(sorted(family(cluster.pid))[0 if position == "first" else -1])
    run = make_run()

    wait_for(status_is(run, Status.SUCCEEDED))


def test_a_cluster_that_is_told_to_end_saves_its_run_and_puts_it_back(make_run, start_cluster) -> None:
    run = make_run(steps=80)
    cluster = start_cluster()
    wait_for(reached(run, 5))
    everything = family(cluster.pid)

    kill(cluster.pid, signal.SIGTERM)
    cluster.wait(timeout=10)

    run.refresh_from_db()
    assert run.status == Status.QUEUED
    assert run.attempts_without_progress == 0
    assert run.events.filter(type="checkpoint").exists()
    assert not any(map(is_running, everything))
    start_cluster()
    wait_for(status_is(run, Status.SUCCEEDED))
    assert steps_of(run, 2)[0] == steps_of(run, 1)[-1] + 1
    assert_whole(run)


def test_one_worker_holds_one_task(make_run, start_cluster) -> None:
    runs = [make_run(steps=200), make_run(steps=5), make_run(steps=5)]
    start_cluster()
    wait_for(reached(runs[0], 2))

    start_cluster()

    wait_for(status_is(runs[2], Status.SUCCEEDED))
    runs[0].refresh_from_db()
    assert runs[0].status == Status.RUNNING


def test_a_run_without_a_queue_entry_is_found(make_run, start_cluster) -> None:
    run = make_run(in_line=False)
    type(run).objects.filter(pk=run.pk).update(created_at="2026-01-01T00:00Z", queued_at="2026-01-01T00:00Z")
    start_cluster()

    wait_for(status_is(run, Status.SUCCEEDED))


def test_a_run_that_was_put_in_line_before_the_clock_went_back_is_done(make_run, start_cluster) -> None:
    run = make_run(in_line=False)
    run.queued_at = timezone.now() + timedelta(hours=1)
    run.save()
    queue.enqueue(run)
    start_cluster()

    wait_for(status_is(run, Status.SUCCEEDED))


def test_a_call_that_was_cut_off_is_made_again(start_cluster, tmp_path) -> None:
    queue.enqueue_call("datasets", "tests.faults.tasks.write_file", str(tmp_path / "done.txt"), 3.0)
    cluster = start_cluster("datasets")
    wait_for(lambda: OrmQ.objects.filter(lock__gt=timezone.now()).exists())

    kill(min(family(cluster.pid)))

    wait_for((tmp_path / "done.txt").exists)
    wait_for(lambda: not OrmQ.objects.exists())
    assert (tmp_path / "done.txt").read_text() == "done\n"


def test_a_task_that_could_not_be_given_back_is_not_held_for_ever(make_run):
    make_run()
    broker = LeaseBroker("training")
    ((row, _),) = broker.dequeue()

    def away(execute, sql, params, many, context):
        raise OperationalError("the server closed the connection")

    with connection.execute_wrapper(away), pytest.raises(OperationalError):
        broker.release()

    assert broker.held == 0
    OrmQ.objects.update(lock=timezone.now())  # its lease has ended
    assert broker.dequeue()[0][0] == row
