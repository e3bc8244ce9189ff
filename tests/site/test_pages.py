"""The pages as people meet them: what they say, who may see them, how many queries they cost."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from audioldm_site import machine
from audioldm_site.forms import command_line
from audioldm_site.jobs.models import Status, Worker
from audioldm_site.templatetags.studio import bytes_size, duration, figure, moment, seconds, step_time, waveform_path, whole
from generation_app.models import Generation, GenerationEvent, Waveform
from gpu.config import PRESETS, FinetuneConfig, GenerateConfig
from gpu.sound import write_wav
from tests.factories import tone
from training_app import selectors
from training_app.forms import MAIN, RunForm
from training_app.models import Checkpoint, TrainingEvent, TrainingRun

pytestmark = pytest.mark.django_db
CONFIG = FinetuneConfig(max_train_steps=1_000, lr_warmup_steps=10).to_dict()


def make_run(owner, base: Checkpoint, *, name: str = "doors", status: str = Status.RUNNING, **values) -> TrainingRun:
    run = TrainingRun(
        owner=owner,
        name=name,
        dataset_name="foley",
        base_checkpoint=base,
        config=CONFIG,
        status=status,
        manifest_digest="9f" * 32,
        **values,
    )
    run.folder.mkdir(parents=True)
    run.save()
    return run


def tell(run: TrainingRun, *events: tuple, attempt: int = 1) -> None:
    """Give a run events as a worker would have recorded them: (type, data) in order."""
    start = run.last_seq
    rows = [
        TrainingEvent(job=run, seq=seq, attempt=attempt, type=type, at=timezone.now(), data=data)
        for seq, (type, data) in enumerate(events, start=start + 1)
    ]
    TrainingEvent.objects.bulk_create(rows)
    run.last_seq = start + len(rows)
    run.attempt = attempt
    run.save()


def progress(step: int) -> tuple[str, dict]:
    return "progress", {"step": step, "max_steps": 1_000, "epoch": 1, "loss": 1 / step, "loss_smooth": 1 / step, "learning_rate": 1e-4}


def sample(run: TrainingRun, step: int, index: int = 0) -> tuple[str, dict]:
    audio = f"samples/global_step={step:06d}/prompt={index}.wav"
    (run.folder / audio).parent.mkdir(parents=True, exist_ok=True)
    sha256 = write_wav(run.folder / audio, tone(440, 0.2), 16_000, recipe={})
    return "sample", {
        "step": step, "index": index, "prompt": "a small bell", "seed": 0, "audio": audio, "sha256": sha256, "duration_s": 0.2, "sample_rate_hz": 16_000, "clap_score": 0.3, "flags": [], "peaks": [40] * 20,
    }  # fmt: skip


def make_generation(owner, checkpoint: Checkpoint, *, prompt: str = "a small bell", status: str = Status.SUCCEEDED, **values) -> Generation:
    generation = Generation(
        owner=owner, checkpoint=checkpoint, prompt=prompt, config=GenerateConfig(prompt=prompt).to_dict(), status=status, **values
    )
    generation.folder.mkdir(parents=True)
    generation.save()
    if status == Status.SUCCEEDED:
        sha256 = write_wav(generation.folder / "0.wav", tone(440, 0.2), 16_000, recipe={})
        Waveform.objects.create(
            generation=generation,
            index=0,
            seed=0,
            audio="0.wav",
            sha256=sha256,
            duration_s=0.2,
            sample_rate_hz=16_000,
            clap_score=0.41,
            peaks=[40] * 20,
        )
    return generation


@pytest.fixture
def alices_run(alice, base_checkpoint):
    return make_run(alice, base_checkpoint)


@pytest.fixture
def alices_generation(alice, base_checkpoint):
    return make_generation(alice, base_checkpoint)


@pytest.fixture
def charlie_client(charlie):
    client = Client()
    client.force_login(charlie)
    return client


def state_of(response) -> dict:
    """What the page hands to its script."""
    return json.loads(re.search(r'<script id="run-state" type="application/json">(.*?)</script>', response.content.decode(), re.DOTALL)[1])


# Who may see what


@pytest.mark.parametrize("name", ["home", "training:index", "training:new", "checkpoints:index", "generation:index"])
def test_pages_ask_for_a_login(client, name):
    response = client.get(reverse(name))

    assert response.status_code == 302
    assert response.url.startswith(reverse("login"))


def test_charlie_does_not_find_alices_run(charlie_client, alices_run):
    for name in ("run", "events", "clone"):
        assert charlie_client.get(reverse(f"training:{name}", args=[alices_run.pk])).status_code == 404
    for name in ("stop", "save", "sample", "resume", "continue", "edit", "archive"):
        assert charlie_client.post(reverse(f"training:{name}", args=[alices_run.pk])).status_code == 404
    alices_run.refresh_from_db()
    assert alices_run.stop_requested_at is None


def test_charlie_does_not_hear_alices_sounds(charlie_client, alice_client, alices_run, alices_generation):
    _, data = sample(alices_run, 0)
    for name in ("file", "spectrogram"):
        address = reverse(f"training:{name}", args=[alices_run.pk, data["audio"]])
        assert (alice_client.get(address).status_code, charlie_client.get(address).status_code) == (200, 404)
        address = reverse(f"generation:{name}", args=[alices_generation.pk, "0.wav"])
        assert (alice_client.get(address).status_code, charlie_client.get(address).status_code) == (200, 404)


def test_charlie_does_not_find_alices_generation_or_checkpoint(charlie_client, alice, alices_generation, alices_run, base_checkpoint):
    own = Checkpoint.objects.create(
        owner=alice,
        name="step 5",
        family="audioldm2",
        format="run",
        origin="run",
        run=alices_run,
        base=base_checkpoint,
        path="runs/x/checkpoints/y",
    )
    assert charlie_client.get(reverse("generation:generation", args=[alices_generation.pk])).status_code == 404
    for name in ("stop", "retry", "favourite", "delete"):
        assert charlie_client.post(reverse(f"generation:{name}", args=[alices_generation.pk])).status_code == 404
    for name in ("checkpoint", "download"):
        assert charlie_client.get(reverse(f"checkpoints:{name}", args=[own.pk])).status_code == 404
    for name in ("pin", "verify"):
        assert charlie_client.post(reverse(f"checkpoints:{name}", args=[own.pk])).status_code == 404


def test_charlies_lists_are_his_own(charlie_client, alices_run, alices_generation):
    for name in ("home", "training:index", "generation:index"):
        page = charlie_client.get(reverse(name)).content.decode()
        assert str(alices_run.pk) not in page
        assert str(alices_generation.pk) not in page


def test_charlie_cannot_start_from_alices_things(charlie_client, alices_run, alices_generation):
    assert charlie_client.get(reverse("training:new"), {"clone": alices_run.pk}).status_code == 404
    assert charlie_client.get(reverse("generation:index"), {"from": alices_generation.pk}).status_code == 404


def test_a_runs_sound_is_saved_under_its_run_step_and_prompt(alice_client, alices_run):
    _, data = sample(alices_run, 500)

    response = alice_client.get(reverse("training:file", args=[alices_run.pk, data["audio"]]))

    assert 'filename="doors-global_step=000500-prompt=0.wav"' in response["Content-Disposition"]
    assert response["Accept-Ranges"] == "bytes"


def test_a_runs_weights_and_secrets_are_not_served_as_files(alice_client, alices_run):
    (alices_run.folder / "checkpoints").mkdir()
    (alices_run.folder / "checkpoints" / "checkpoint.json").write_text("{}")
    (alices_run.folder / "resume.pt").write_bytes(b"x")
    (alices_run.folder / "config.json").write_text("{}")

    def status(path: str) -> int:
        return alice_client.get(reverse("training:file", args=[alices_run.pk, path])).status_code

    assert status("config.json") == 200
    assert status("checkpoints/checkpoint.json") == 404
    assert status("resume.pt") == 404
    assert status("../../db.sqlite3") == 404


def test_missing_and_foreign_pages_say_so(alice_client):
    response = alice_client.get("/nothing/")

    assert response.status_code == 404
    assert "Nothing here" in response.content.decode()


# Home


def test_home_shows_what_runs_and_what_waits_with_its_place(alice_client, alice, bob, base_checkpoint):
    running = make_run(alice, base_checkpoint, name="running doors", global_step=250)
    tell(running, ("started", {"step": 0}), progress(250))
    make_run(bob, base_checkpoint, name="bob's", status=Status.QUEUED, queued_at=timezone.now() - timedelta(minutes=5))
    make_run(alice, base_checkpoint, name="waiting doors", status=Status.QUEUED)

    page = alice_client.get(reverse("home")).content.decode()

    assert "running doors" in page
    assert "bob&#x27;s" not in page
    assert re.search(r'class="place"[^>]*>2<', page)


def test_home_names_the_queue_that_nobody_works_on(alice_client):
    Worker.objects.create(name="t", queue="training", pid=1, host="here", seen_at=timezone.now())
    Worker.objects.create(name="g", queue="generation", pid=2, host="here", seen_at=timezone.now() - timedelta(minutes=5))

    page = alice_client.get(reverse("home")).content.decode()

    assert "No training worker is running" not in page
    assert "No generation worker is running" in page
    assert "manage.py serve" in page


def test_home_guides_a_newcomer(alice_client):
    page = alice_client.get(reverse("home")).content.decode()

    assert "First steps" in page
    assert "No runs yet" in page


# Lists


def test_runs_are_found_by_name_tag_note_and_dataset(alice, base_checkpoint):
    make_run(alice, base_checkpoint, name="doors", tags="night, sweep")
    make_run(alice, base_checkpoint, name="bells", notes="too bright")

    def found(query: str) -> list[str]:
        return [run.name for run in selectors.run_page(alice, query=query)]

    assert found("DOORS") == ["doors"]
    assert found("sweep night") == ["doors"]
    assert found("bright") == ["bells"]
    assert sorted(found("foley")) == ["bells", "doors"]
    assert found("nothing") == []


def test_runs_are_sorted_and_filtered(alice, base_checkpoint):
    make_run(alice, base_checkpoint, name="a", latest_loss=0.3, status=Status.FAILED)
    make_run(alice, base_checkpoint, name="b", latest_loss=0.1)
    make_run(alice, base_checkpoint, name="c", latest_loss=None)

    assert [run.name for run in selectors.run_page(alice, sort="loss")] == ["b", "a", "c"]
    assert [run.name for run in selectors.run_page(alice, sort="name")] == ["a", "b", "c"]
    assert [run.name for run in selectors.run_page(alice, status="failed")] == ["a"]
    assert [run.name for run in selectors.run_page(alice, sort="no such order")] == ["c", "b", "a"]


def test_favourites_are_found_again(alice_client, alices_generation, alice, base_checkpoint):
    make_generation(alice, base_checkpoint, prompt="rain on a roof")
    alice_client.post(reverse("generation:favourite", args=[alices_generation.pk]))

    page = alice_client.get(reverse("generation:index"), {"favourites": "1"}).content.decode()

    assert str(alices_generation.pk) in page
    assert "rain on a roof" not in page


@pytest.mark.parametrize("name", ["home", "training:index", "checkpoints:index", "generation:index"])
def test_a_list_costs_the_same_queries_however_long(name, alice_client, alice, base_checkpoint):
    def fill(count: int) -> None:
        for number in range(count):
            run = make_run(
                alice, base_checkpoint, name=f"run {number}", status=[Status.RUNNING, Status.QUEUED, Status.SUCCEEDED][number % 3]
            )
            tell(run, progress(5))
            Checkpoint.objects.create(
                name=f"{run.pk}",
                family="audioldm2",
                format="run",
                origin="run",
                run=run,
                base=base_checkpoint,
                owner=alice,
                path=f"runs/{run.pk}",
            )
            make_generation(alice, base_checkpoint, status=[Status.RUNNING, Status.QUEUED, Status.SUCCEEDED][number % 3])

    fill(3)
    few = count_queries(alice_client, reverse(name))
    fill(12)
    many = count_queries(alice_client, reverse(name))

    assert few == many
    assert many <= 25


def count_queries(client: Client, address: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert client.get(address).status_code == 200
    return len(queries)


# A new run


def test_the_form_has_every_parameter_once_with_its_limits(alice):
    form = RunForm(user=alice)
    shown = [field.name for field in form.main_fields()] + [field.name for group in form.expert_groups() for field in group["fields"]]

    assert sorted(shown) == sorted(parameter.name for parameter in FinetuneConfig.parameters())
    for parameter in FinetuneConfig.parameters():
        assert form.fields[parameter.name].initial == parameter.default
        assert form.fields[parameter.name].help_text == parameter.help
    assert 'max="100"' in str(form["guidance_scale"])


def test_the_known_options_stand_in_the_open():
    assert {
        "seed",
        "checkpointing_steps",
        "validation_epochs",
        "guidance_scale",
        "num_inference_steps",
        "num_waveforms_per_prompt",
        "audio_length_in_s",
    } <= set(MAIN)


def test_a_wrong_value_is_named_where_it_stands(alice_client, dataset, checkpoint):
    response = alice_client.post(
        reverse("training:new"),
        {**CONFIG, "validation_prompts": "", "dataset": dataset.pk, "checkpoint": checkpoint.pk, "learning_rate": "ten"},
    )

    assert response.status_code == 422
    form = response.context["form"]
    assert form.errors["learning_rate"] == ["learning_rate ('ten') must be a number"]
    assert [group["open"] for group in form.expert_groups() if group["title"] == "Learning"] == [True]
    assert not TrainingRun.objects.exists()


def test_values_that_do_not_go_together_are_refused_in_the_form(alice_client, dataset, checkpoint):
    response = alice_client.post(
        reverse("training:new"),
        {**CONFIG, "validation_prompts": "", "dataset": dataset.pk, "checkpoint": checkpoint.pk, "lr_warmup_steps": "5000"},
    )

    assert response.context["form"].errors["lr_warmup_steps"] == ["lr_warmup_steps (5000) must be less than max_train_steps (1000)"]


def test_a_run_is_made_from_the_form(alice_client, alice, dataset, checkpoint):
    values = {
        **CONFIG,
        "validation_prompts": "a bell\n\nrain",
        "name": "doors",
        "tags": "night",
        "dataset": dataset.pk,
        "checkpoint": checkpoint.pk,
    }
    del values["use_ema"], values["gradient_checkpointing"]  # unticked boxes are not sent

    response = alice_client.post(reverse("training:new"), values)

    run = TrainingRun.objects.get()
    assert response.url == reverse("training:run", args=[run.pk])
    assert (run.owner, run.name, run.tags, run.status) == (alice, "doors", "night", Status.QUEUED)
    assert run.config["validation_prompts"] == ["a bell", "rain"]
    assert run.config["use_ema"] is False
    assert (run.folder / "config.json").is_file()


def test_a_preset_fills_the_form_without_javascript(alice_client):
    form = alice_client.get(reverse("training:new"), {"preset": "standard"}).context["form"]

    for name, value in PRESETS["standard"].items():
        assert form[name].value() == value


def test_the_start_page_warns_when_all_state_goes_with_the_container(alice_client, monkeypatch):
    disk = machine.disk()
    monkeypatch.setattr(machine, "disk", lambda: dataclasses.replace(disk, is_containers_own=False))
    assert "outlives the container" not in alice_client.get(reverse("home")).content.decode()

    monkeypatch.setattr(machine, "disk", lambda: dataclasses.replace(disk, is_containers_own=True))

    assert "outlives the container" in alice_client.get(reverse("home")).content.decode()


def test_a_page_answers_head_as_download_tools_ask(alice_client):
    assert alice_client.head(reverse("training:index")).status_code == 200


def test_the_newest_model_and_a_lone_dataset_are_chosen_already(alice_client, base_checkpoint, dataset):
    Checkpoint.objects.filter(pk=base_checkpoint.pk).update(defaults={"audio_length_in_s": 5.12})

    form = alice_client.get(reverse("training:new")).context["form"]

    assert form["checkpoint"].value() == base_checkpoint.pk
    assert form["audio_length_in_s"].value() == 5.12
    assert form["dataset"].value() == dataset.pk


def test_a_checkpoint_recommends_its_own_values(alice_client, base_checkpoint):
    Checkpoint.objects.filter(pk=base_checkpoint.pk).update(defaults={"audio_length_in_s": 5.12})

    form = alice_client.get(reverse("training:new"), {"checkpoint": base_checkpoint.pk}).context["form"]

    assert form["audio_length_in_s"].value() == 5.12
    assert str(form["checkpoint"].value()) == str(base_checkpoint.pk)


def test_a_clone_starts_from_the_runs_options(alice_client, alices_run):
    alices_run.config = {**CONFIG, "lora_rank": 7}
    alices_run.save()

    form = alice_client.get(reverse("training:new"), {"clone": alices_run.pk}).context["form"]

    assert form["lora_rank"].value() == 7
    assert form["max_train_steps"].value() == 1_000


def test_a_high_guidance_is_warned_about(alice_client, alices_run):
    alices_run.config = {**CONFIG, "guidance_scale": 20.0}
    alices_run.save()

    page = alice_client.get(reverse("training:new"), {"clone": alices_run.pk}).content.decode()

    assert "guidance_scale (20.0) is above 15" in page


def test_what_a_run_has_cost_is_shown_where_a_price_is_set(alice_client, alices_run, settings):
    alices_run.started_at = timezone.now() - timedelta(hours=2)
    alices_run.save()
    address = reverse("training:run", args=[alices_run.pk])
    assert alice_client.get(address).context["spent"] is None

    settings.ENVIRONMENT = dataclasses.replace(settings.ENVIRONMENT, price_per_hour=0.79)

    assert alice_client.get(address).context["spent"] == pytest.approx(1.58, abs=0.01)


def test_nonsense_in_the_address_is_no_error(alice_client):
    for query in ({"dataset": "x"}, {"checkpoint": "y"}, {"clone": "z"}, {"preset": "none"}, {"page": "q"}):
        assert alice_client.get(reverse("training:new"), query).status_code == 200
        assert alice_client.get(reverse("training:index"), query).status_code == 200
        assert alice_client.get(reverse("generation:index"), {**query, "from": "w"}).status_code == 200


def test_the_command_names_only_what_differs():
    values = {**FinetuneConfig().to_dict(), "learning_rate": 3e-4, "use_ema": True, "validation_prompts": ["a bell", "it's rain"]}

    command = command_line("finetune", {"--dataset": "Foley doors", "--checkpoint": "starter"}, values, FinetuneConfig)

    assert command == (
        "./manage.py finetune --dataset 'Foley doors' --checkpoint starter --learning_rate 0.0003 --use_ema true"
        " --validation_prompts 'a bell' --validation_prompts 'it'\"'\"'s rain'"
    )


# A run's page


def test_a_run_is_drawn_at_its_newest_event(alice_client, alices_run):
    tell(alices_run, ("started", {"step": 0}), progress(1), progress(2), sample(alices_run, 0))

    state = state_of(alice_client.get(reverse("training:run", args=[alices_run.pk])))

    assert state["seq"] == 4
    assert state["progress"]["step"] == [1, 2]
    assert [item["step"] for item in state["samples"]] == [0]


def test_what_an_earlier_attempt_said_about_later_steps_is_left_out(alices_run):
    tell(alices_run, ("started", {"step": 0}), progress(10), progress(20), ("validated", {"step": 20, "loss": 1.0}), progress(30))
    tell(alices_run, ("started", {"step": 10}), progress(11), attempt=2)

    snapshot = selectors.run_snapshot(alices_run)

    assert snapshot["progress"]["step"] == [10, 11]
    assert snapshot["validations"] == []


def test_a_long_run_is_thinned_and_keeps_its_newest_point(alices_run, django_assert_num_queries):
    tell(alices_run, *[progress(step) for step in range(1, 5_001)])

    with django_assert_num_queries(4):
        snapshot = selectors.run_snapshot(alices_run)

    steps = snapshot["progress"]["step"]
    assert len(steps) <= selectors.CHART_POINTS
    assert len(steps) > selectors.CHART_POINTS / 2
    assert steps[-1] == 5_000
    assert snapshot["latest"]["step"] == 5_000


def test_a_runs_page_costs_a_fixed_number_of_queries(alice_client, alices_run, alice, base_checkpoint):
    address = reverse("training:run", args=[alices_run.pk])
    tell(alices_run, progress(1), sample(alices_run, 0))
    few = count_queries(alice_client, address)
    for step in range(2, 12):
        tell(alices_run, progress(step), sample(alices_run, step), ("checkpoint", {"step": step}))
        Checkpoint.objects.create(
            name=f"step {step}",
            family="audioldm2",
            format="run",
            origin="run",
            run=alices_run,
            base=base_checkpoint,
            owner=alice,
            path=f"{step}",
            global_step=step,
        )

    assert count_queries(alice_client, address) == few
    assert few <= 16


@pytest.mark.parametrize(
    ("status", "shown", "hidden"),
    [
        (Status.QUEUED, ["Take out of the line"], ["Save now", "Resume"]),
        (Status.RUNNING, ["Save now", "Sample now", "Stop and save", "Stop now"], ["Resume", "Continue for more steps"]),
        (Status.FAILED, ["Resume", "Clone with changes"], ["Stop now"]),
        (Status.CANCELLED, ["Resume"], ["Stop now"]),
        (Status.SUCCEEDED, ["Clone with changes"], ["Resume", "Stop now", "Continue for more steps"]),
    ],
)
def test_the_buttons_fit_the_status(alice_client, alice, base_checkpoint, status, shown, hidden):
    run = make_run(alice, base_checkpoint, status=status)

    page = alice_client.get(reverse("training:run", args=[run.pk])).content.decode()

    for words in shown:
        assert words in page
    for words in hidden:
        assert words not in page.split("data-samples")[0]


def test_a_finished_run_with_its_state_can_be_continued(alice_client, alice, base_checkpoint):
    run = make_run(alice, base_checkpoint, status=Status.SUCCEEDED)
    Checkpoint.objects.create(
        name="last",
        family="audioldm2",
        format="run",
        origin="run",
        run=run,
        base=base_checkpoint,
        owner=alice,
        path="last",
        global_step=5,
        has_resume_state=True,
    )

    assert "Continue for more steps" in alice_client.get(reverse("training:run", args=[run.pk])).content.decode()


def test_a_failed_run_says_what_why_and_what_to_do(alice_client, alice, base_checkpoint):
    run = make_run(alice, base_checkpoint, status=Status.FAILED, error_code="memory.exhausted", error_detail="17 GB wanted, 16 GB there")
    (run.folder / "log.txt").write_text("Traceback\nOutOfMemoryError: no room\n")

    page = alice_client.get(reverse("training:run", args=[run.pk])).content.decode()

    assert "Out of memory" in page
    assert "17 GB wanted" in page
    assert "What to do:" in page
    assert "OutOfMemoryError: no room" in page


def test_a_run_can_be_read_without_javascript(alice_client, alices_run):
    alices_run.global_step = 250
    tell(alices_run, ("started", {"step": 0, "device": "cpu"}), progress(1), progress(250), sample(alices_run, 0))

    page = alice_client.get(reverse("training:run", args=[alices_run.pk])).content.decode()

    assert '<meta http-equiv="refresh"' in page
    assert "<polyline" in page
    assert re.search(r"<noscript>.*<audio controls", page, re.DOTALL)
    assert 'value="250"' in page


def test_no_page_needs_inline_code(alice_client, alices_run, alices_generation):
    """So that a Content-Security-Policy of 'self' holds."""
    for address in (
        reverse("home"),
        reverse("training:new"),
        reverse("training:run", args=[alices_run.pk]),
        reverse("generation:generation", args=[alices_generation.pk]),
    ):
        page = alice_client.get(address).content.decode()
        assert not re.search(r"<script(?![^>]*(src=|application/json))", page)
        assert not re.search(r"\s(on\w+|style)=\"", page)


def test_events_can_be_polled_where_no_socket_gets_through(alice_client, alices_run):
    tell(alices_run, progress(1), progress(2), progress(3))

    answer = alice_client.get(reverse("training:events", args=[alices_run.pk]), {"after": "1"}).json()

    assert [event["seq"] for event in answer["events"]] == [2, 3]


def test_stop_asks_the_run_to_save_first(alice_client, alices_run):
    alice_client.post(reverse("training:stop", args=[alices_run.pk]), {"how": "save"})

    alices_run.refresh_from_db()
    assert alices_run.stop_requested_at is not None
    assert alices_run.stop_without_saving is False


def test_stop_now_does_not_wait_for_a_checkpoint(alice_client, alices_run):
    alice_client.post(reverse("training:stop", args=[alices_run.pk]), {"how": "now"})

    alices_run.refresh_from_db()
    assert alices_run.stop_without_saving is True


@pytest.mark.parametrize("request_name", ["save", "sample"])
def test_save_and_sample_leave_a_request_for_the_trainer(alice_client, alices_run, request_name):
    alice_client.post(reverse(f"training:{request_name}", args=[alices_run.pk]))

    assert (alices_run.folder / "control" / request_name).exists()


def test_a_run_that_has_ended_is_not_stopped_again(alice_client, alice, base_checkpoint):
    run = make_run(alice, base_checkpoint, status=Status.SUCCEEDED)

    response = alice_client.post(reverse("training:stop", args=[run.pk]), follow=True)

    assert "had ended already" in response.content.decode()


def test_commands_are_never_obeyed_by_get(alice_client, alices_run, alices_generation):
    for name in ("stop", "save", "sample", "resume", "continue", "edit"):
        assert alice_client.get(reverse(f"training:{name}", args=[alices_run.pk])).status_code == 405
    for name in ("stop", "delete", "favourite"):
        assert alice_client.get(reverse(f"generation:{name}", args=[alices_generation.pk])).status_code == 405


def test_notes_and_tags_are_kept(alice_client, alices_run):
    alice_client.post(reverse("training:edit", args=[alices_run.pk]), {"name": "doors two", "tags": "night", "notes": "thin"})

    alices_run.refresh_from_db()
    assert (alices_run.name, alices_run.tags, alices_run.notes) == ("doors two", "night", "thin")


def test_an_empty_name_is_refused(alice_client, alices_run):
    alice_client.post(reverse("training:edit", args=[alices_run.pk]), {"name": " ", "tags": "", "notes": ""})

    alices_run.refresh_from_db()
    assert alices_run.name == "doors"


# Checkpoints


def test_a_runs_weights_can_be_downloaded_in_pieces(alice_client, alice, alices_run, base_checkpoint):
    folder = alices_run.folder / "checkpoints" / "global_step=000005"
    folder.mkdir(parents=True)
    (folder / "lora.safetensors").write_bytes(b"0123456789")
    row = Checkpoint.objects.create(
        owner=alice,
        name="doors, step 5",
        family="audioldm2",
        format="run",
        origin="run",
        run=alices_run,
        base=base_checkpoint,
        path=f"runs/{alices_run.pk}/checkpoints/global_step=000005",
    )

    response = alice_client.get(reverse("checkpoints:download", args=[row.pk]), headers={"Range": "bytes=4-"})

    assert response.status_code == 206
    assert b"".join(response.streaming_content) == b"456789"
    assert 'filename="doors-step-5.lora.safetensors"' in response["Content-Disposition"]


def test_a_checkpoints_page_tells_its_lineage(alice_client, alice, alices_run, base_checkpoint):
    row = Checkpoint.objects.create(
        owner=alice,
        name="step five",
        family="audioldm2",
        format="run",
        origin="run",
        run=alices_run,
        base=base_checkpoint,
        path="x",
        licence="CC-BY-NC-SA-4.0",
    )

    page = alice_client.get(reverse("checkpoints:checkpoint", args=[row.pk])).content.decode()

    for words in ("foley", "doors", base_checkpoint.name, "step five", "CC-BY-NC-SA-4.0"):
        assert words in page


def test_a_lineage_goes_on_through_runs_up_and_down(alice_client, alice, alices_run, base_checkpoint):
    first = Checkpoint.objects.create(owner=alice, name="first step", family="audioldm2", format="run", origin="run", run=alices_run, base=base_checkpoint, path="a")
    second_run = make_run(alice, first, name="second round")
    second = Checkpoint.objects.create(owner=alice, name="second step", family="audioldm2", format="run", origin="run", run=second_run, base=first, path="b")

    page = alice_client.get(reverse("checkpoints:checkpoint", args=[second.pk])).content.decode().split('id="lineage"')[1]
    places = [page.index(reverse(view, args=[row.pk])) for view, row in [
        ("checkpoints:checkpoint", base_checkpoint), ("training:run", alices_run), ("checkpoints:checkpoint", first), ("training:run", second_run),
    ]]  # fmt: skip
    assert places == sorted(places)

    above = alice_client.get(reverse("checkpoints:checkpoint", args=[first.pk])).content.decode()
    assert reverse("checkpoints:checkpoint", args=[second.pk]) in above.split("Made from it")[1]


def test_a_model_that_came_from_nothing_has_no_lineage(alice_client, base_checkpoint):
    assert "Lineage" not in alice_client.get(reverse("checkpoints:checkpoint", args=[base_checkpoint.pk])).content.decode()


def test_a_strangers_run_in_a_lineage_keeps_its_name(charlie, charlie_client, alices_run, base_checkpoint):
    first = Checkpoint.objects.create(owner=alices_run.owner, name="secret step", family="audioldm2", format="run", origin="run", run=alices_run, base=base_checkpoint, path="a")
    mine = make_run(charlie, first, name="mine")
    row = Checkpoint.objects.create(owner=charlie, name="my step", family="audioldm2", format="run", origin="run", run=mine, base=first, path="b")
    page = charlie_client.get(reverse("checkpoints:checkpoint", args=[row.pk])).content.decode()
    assert "not shared with you" in page
    assert "secret step" not in page
    assert alices_run.name not in page


def test_one_icon_serves_every_page_the_administration_and_whoever_asks_for_favicon_ico(client, root):
    answer = client.get("/favicon.ico")
    assert (answer.status_code, answer.url.endswith("icon.svg")) == (302, True)
    client.force_login(root)
    assert 'rel="icon"' in client.get(reverse("admin:index")).content.decode()


def test_a_scan_says_what_it_found(alice_client, settings):
    (settings.DATA_DIR / "incoming" / "checkpoints" / "readme").mkdir()

    page = alice_client.post(reverse("checkpoints:scan"), follow=True).content.decode()

    assert "readme was left alone" in page


# Generation


def test_a_sound_is_asked_for_with_the_form(alice_client, alice, checkpoint):
    values = {**GenerateConfig(prompt="a bell").to_dict(), "checkpoint": checkpoint.pk}

    response = alice_client.post(reverse("generation:index"), values)

    generation = Generation.objects.get()
    assert response.url == reverse("generation:generation", args=[generation.pk])
    assert (generation.owner, generation.prompt, generation.status) == (alice, "a bell", Status.QUEUED)


def test_an_empty_prompt_is_named(alice_client, checkpoint):
    response = alice_client.post(reverse("generation:index"), {**GenerateConfig().to_dict(), "checkpoint": checkpoint.pk})

    assert response.status_code == 422
    assert "prompt is empty" in response.context["form"].errors["prompt"][0]


def test_settings_of_an_earlier_sound_fill_the_form(alice_client, alices_generation):
    alices_generation.config = {**alices_generation.config, "seed": 77, "guidance_scale": 5.0}
    alices_generation.save()

    form = alice_client.get(reverse("generation:index"), {"from": alices_generation.pk}).context["form"]

    assert (form["prompt"].value(), form["seed"].value(), form["guidance_scale"].value()) == ("a small bell", 77, 5.0)
    assert form["checkpoint"].value() == alices_generation.checkpoint_id


def test_a_generation_shows_its_sounds_recipe_and_lineage(alice_client, alices_generation, base_checkpoint):
    page = alice_client.get(reverse("generation:generation", args=[alices_generation.pk])).content.decode()

    assert "CLAP 0.41" in page
    assert reverse("generation:file", args=[alices_generation.pk, "0.wav"]) in page
    assert "manage.py generate &#x27;a small bell&#x27; --checkpoint base" in page
    assert base_checkpoint.name in page


def test_a_waiting_generation_says_its_place(alice_client, alice, bob, base_checkpoint):
    make_generation(bob, base_checkpoint, status=Status.QUEUED, queued_at=timezone.now() - timedelta(minutes=1))
    own = make_generation(alice, base_checkpoint, status=Status.QUEUED)

    assert "In line: number 2" in alice_client.get(reverse("generation:generation", args=[own.pk])).content.decode()


def test_a_failed_generation_is_explained(alice_client, alice, base_checkpoint):
    failed = make_generation(alice, base_checkpoint, status=Status.FAILED, error_code="memory.exhausted", error_detail="no room")

    page = alice_client.get(reverse("generation:generation", args=[failed.pk])).content.decode()

    assert "Out of memory" in page
    assert "Try again" in page


def test_a_running_generation_is_drawn_at_its_newest_event(alice_client, alice, base_checkpoint):
    running = make_generation(alice, base_checkpoint, status=Status.RUNNING, last_seq=2)
    GenerationEvent.objects.create(job=running, seq=1, attempt=1, type="started", at=timezone.now(), data={})
    GenerationEvent.objects.create(job=running, seq=2, attempt=1, type="progress", at=timezone.now(), data={"step": 7, "max_steps": 25})

    assert "step 7 of 25" in alice_client.get(reverse("generation:generation", args=[running.pk])).content.decode()


def test_a_sound_is_saved_under_its_prompt(alice_client, alices_generation):
    response = alice_client.get(reverse("generation:file", args=[alices_generation.pk, "0.wav"]), {"download": ""})

    assert response["Content-Disposition"] == 'attachment; filename="a-small-bell-0.wav"'
    assert response["Content-Type"] == "audio/wav"


def test_a_deleted_generation_takes_its_sounds_along(alice_client, alices_generation):
    folder = alices_generation.folder

    alice_client.post(reverse("generation:delete", args=[alices_generation.pk]))

    assert not Generation.objects.exists()
    assert not folder.exists()


# Words and drawings


def test_a_waveform_is_one_bar_per_peak():
    assert waveform_path([10, 20, 100]) == "M0.5 45V55M1.5 40V60M2.5 0V100"
    assert waveform_path([10, 90, 20, 30], bars=2) == "M0.5 5V95M1.5 35V65"
    assert waveform_path([]) == ""


def test_numbers_read_well():
    assert [bytes_size(value) for value in (0, 999, 12_345_678, 4.43e9, None, "")] == ["0 B", "999 B", "12.3 MB", "4.4 GB", "–", "–"]
    assert [duration(value) for value in (0, 0.3, 42, 65, 3_599, 7_500, 90_000)] == ["0 s", "less than 1 s", "42 s", "1 min 05 s", "60 min", "2 h 05 min", "1 d 1 h"]
    assert [step_time(value) for value in (0.0163, 4.23, 42.4, 65)] == ["0.016 s", "4.2 s", "42 s", "1 min 05 s"]
    assert [seconds(value) for value in (10.24, 6.0, 125)] == ["10.24 s", "6 s", "2:05"]
    assert [figure(value) for value in (1e-4, 0.131234, 0, 12, None)] == ["1e-4", "0.1312", "0", "12", "–"]
    assert whole(20_000) == "20\u202f000"
    assert moment(None) == "–"
