"""What an operator does in the admin: checkpoints are managed, jobs are looked at, stopped and put back in line."""

from __future__ import annotations

import pytest
from django.urls import reverse

from audioldm_site.jobs.models import Status
from generation_app import services as generations
from training_app import services
from training_app.models import Checkpoint

pytestmark = pytest.mark.django_db


@pytest.fixture
def root_client(client, root):
    client.force_login(root)
    return client


@pytest.fixture
def run(dataset, checkpoint, alice):
    return services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={}, name="first")


def act(client, model: str, action: str, *rows) -> str:
    """Do an action of a list page on rows; what it said."""
    address = reverse(f"admin:{model}_changelist")
    answer = client.post(address, {"action": action, "_selected_action": [str(row.pk) for row in rows]}, follow=True)
    assert answer.status_code == 200
    return " ".join(str(message) for message in answer.context["messages"])


def test_every_page_of_the_admin_opens(root_client, run, checkpoint, alice):
    generation = generations.create_generation(owner=alice, checkpoint=checkpoint, values={"prompt": "a dog"})
    for model, row in (("training_app_checkpoint", checkpoint), ("training_app_trainingrun", run), ("generation_app_generation", generation), ("datasets_app_dataset", run.dataset)):
        assert root_client.get(reverse(f"admin:{model}_changelist")).status_code == 200
        assert root_client.get(reverse(f"admin:{model}_change", args=[row.pk])).status_code == 200
    for model in ("jobs_worker", "django_q_ormq", "django_q_success", "django_q_failure", "auth_user"):
        assert root_client.get(reverse(f"admin:{model}_changelist")).status_code == 200


def test_a_changed_file_fails_verification(root_client, checkpoint):
    assert "whole" in act(root_client, "training_app_checkpoint", "verify_files", checkpoint)
    (checkpoint.folder / "model_index.json").write_text("{}")
    assert "differ" in act(root_client, "training_app_checkpoint", "verify_files", checkpoint)


def test_a_checkpoint_is_pinned_retired_and_brought_back(root_client, checkpoint):
    act(root_client, "training_app_checkpoint", "pin", checkpoint)
    act(root_client, "training_app_checkpoint", "retire", checkpoint)
    checkpoint.refresh_from_db()
    assert (checkpoint.pinned, checkpoint.retired) == (True, True)
    act(root_client, "training_app_checkpoint", "unpin", checkpoint)
    act(root_client, "training_app_checkpoint", "bring_back", checkpoint)
    checkpoint.refresh_from_db()
    assert (checkpoint.pinned, checkpoint.retired) == (False, False)


def test_licence_and_notes_can_be_written_and_the_hash_cannot(root_client, checkpoint):
    address = reverse("admin:training_app_checkpoint_change", args=[checkpoint.pk])
    root_client.post(address, {"name": "renamed", "licence": "CC-BY-NC-4.0", "notes": "from the web", "sha256": "0" * 64, "owner": ""})
    before = checkpoint.sha256
    checkpoint.refresh_from_db()
    assert (checkpoint.name, checkpoint.licence, checkpoint.notes, checkpoint.sha256) == ("renamed", "CC-BY-NC-4.0", "from the web", before)


def test_a_checkpoint_says_where_it_is_used(root_client, checkpoint, run):
    page = root_client.get(reverse("admin:training_app_checkpoint_change", args=[checkpoint.pk])).content.decode()
    assert "1 runs" in page


def test_nothing_is_deleted_from_under_what_was_made_with_it(root_client, checkpoint):
    assert root_client.post(reverse("admin:training_app_checkpoint_delete", args=[checkpoint.pk]), {"post": "yes"}).status_code == 403
    assert Checkpoint.objects.filter(pk=checkpoint.pk).exists()


def test_a_run_is_stopped_and_put_back_in_line(root_client, run):
    assert "asked to stop" in act(root_client, "training_app_trainingrun", "stop", run)
    run.refresh_from_db()
    assert run.status == Status.CANCELLED
    assert "in line again" in act(root_client, "training_app_trainingrun", "requeue", run)
    run.refresh_from_db()
    assert run.status == Status.QUEUED


def test_the_history_is_read_only(root_client, run):
    answer = root_client.post(reverse("admin:training_app_trainingrun_change", args=[run.pk]), {"status": "succeeded"})
    assert answer.status_code == 403
    run.refresh_from_db()
    assert run.status == Status.QUEUED


@pytest.mark.parametrize("model", ["training_app_checkpoint", "training_app_trainingrun", "generation_app_generation", "datasets_app_dataset"])
def test_a_search_of_a_thousand_words_is_answered(root_client, model):
    assert root_client.get(reverse(f"admin:{model}_changelist"), {"q": "a " * 3000}).status_code == 200


def test_alice_has_no_admin(alice_client):
    assert alice_client.get(reverse("admin:index")).status_code == 302
