"""What the pages do, done by a program."""

from __future__ import annotations

import uuid

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from audioldm_site.jobs import lifecycle
from datasets_app import services as datasets
from datasets_app.models import Dataset
from generation_app.models import Listening, Waveform
from gpu.config import FinetuneConfig, GenerateConfig
from gpu.events import EventWriter
from tests.factories import tone, wav_bytes, write_dataset_zip
from training_app.models import Checkpoint, TrainingRun

pytestmark = pytest.mark.django_db


# --- datasets


def test_a_dataset_is_uploaded_and_says_where_to_watch_it(api, tmp_path):
    archive = SimpleUploadedFile("../../bells.zip", write_dataset_zip(tmp_path / "x.zip").read_bytes())

    answer = api.client.post("/api/v1/datasets", {"archive": archive, "name": "bells"})

    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/api/v1/datasets/{answer.json()['id']}"
    assert (answer.json()["status"], answer.json()["source_name"]) == ("importing", "bells.zip")

    datasets.import_dataset(Dataset.objects.get())
    assert api("get", answer.headers["Location"]).json()["usable_count"] == 10


def test_datasets_come_in_pages(api, dataset, alice):
    for number in range(4):
        Dataset.objects.create(owner=alice, name=f"d{number}", origin="uploaded", source_name="x")

    first = api("get", "datasets", per_page=2, page=1).json()
    assert (first["count"], first["pages"], len(first["items"])) == (5, 3, 2)
    last = api("get", api("get", first["next"]).json()["next"]).json()
    assert (len(last["items"]), last["next"]) == (1, None)
    assert api("get", "datasets", per_page=201).status_code == 422


def test_a_dataset_is_renamed_split_and_deleted(api, dataset):
    assert api("patch", f"datasets/{dataset.pk}", {"name": "tones again", "licence": "CC0"}).json()["licence"] == "CC0"
    assert api("post", f"datasets/{dataset.pk}/split", {"seed": 3, "validation_share": 0.3}).json()["split_seed"] == 3
    assert api("delete", f"datasets/{dataset.pk}").status_code == 204
    assert not dataset.folder.exists()


def test_a_dataset_in_use_is_not_deleted(api, dataset, run):
    answer = api("delete", f"datasets/{dataset.pk}")

    assert (answer.status_code, answer.json()["code"]) == (409, "dataset.in_use")


def test_a_clip_is_captioned_moved_and_left_out(api, dataset):
    clip = api("get", f"datasets/{dataset.pk}/clips", q="300 hertz").json()["items"][0]

    changed = api("patch", f"datasets/{dataset.pk}/clips/{clip['id']}", {"caption": "a bell", "split": "validation", "excluded": True}).json()

    assert (changed["caption"], changed["split"], changed["excluded"]) == ("a bell", "validation", True)
    sound = api("get", f"datasets/{dataset.pk}/clips/{clip['id']}/audio")
    assert sound.headers["Content-Type"] == "audio/wav"


def test_incoming_is_scanned(api, settings, tmp_path):
    write_dataset_zip(settings.DATA_DIR / "incoming" / "datasets" / "growing.zip")

    assert "growing.zip" in api("post", "datasets/scan").json()["ignored"][0]["path"]


# --- runs


def test_a_run_is_put_in_line(api, dataset, checkpoint):
    answer = api("post", "runs", {"dataset": str(dataset.pk), "checkpoint": str(checkpoint.pk), "preset": "quick", "parameters": {"seed": 7}})

    run = TrainingRun.objects.get()
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/api/v1/runs/{run.pk}")
    assert (answer.json()["place"], answer.json()["parameters"]["seed"], answer.json()["max_train_steps"]) == (1, 7, 300)


def test_every_wrong_parameter_is_named(api, dataset, checkpoint):
    parameters = {"train_batch_size": 0, "guidance_scale": "loud", "sampler": "best"}
    answer = api("post", "runs", {"dataset": str(dataset.pk), "checkpoint": str(checkpoint.pk), "parameters": parameters})

    problem = answer.json()
    assert (answer.status_code, answer.headers["Content-Type"], problem["code"]) == (422, "application/problem+json", "config.invalid")
    assert set(problem["errors"]) == set(parameters)
    assert problem["errors"]["train_batch_size"] == "train_batch_size (0) must be at least 1"
    assert not TrainingRun.objects.exists()


@pytest.mark.parametrize("values", [{"dataset": "x"}, {"wish": 1}, {"preset": "huge"}, {"parameters": []}])
def test_what_does_not_fit_the_shape_is_named(api, dataset, checkpoint, values):
    answer = api("post", "runs", {"dataset": str(dataset.pk), "checkpoint": str(checkpoint.pk), **values})

    assert (answer.status_code, list(answer.json()["errors"])) == (422, list(values))


def test_a_run_cannot_start_from_what_one_does_not_see(charlies_api, dataset, checkpoint):
    assert charlies_api("post", "runs", {"dataset": str(dataset.pk), "checkpoint": str(checkpoint.pk)}).status_code == 404


def test_a_waiting_run_is_stopped_once_and_resumed(api, run):
    assert api("post", f"runs/{run.pk}/stop", {"save": False}).json()["status"] == "cancelled"
    again = api("post", f"runs/{run.pk}/stop")
    assert (again.status_code, again.json()["code"]) == (409, "run.ended")
    assert api("post", f"runs/{run.pk}/resume").json()["status"] == "queued"


def test_a_running_run_is_asked_to_save_and_sample(api, run):
    assert api("post", f"runs/{run.pk}/save").status_code == 409
    lifecycle.claim(run, worker_name="w")

    assert api("post", f"runs/{run.pk}/save").status_code == 202
    assert api("post", f"runs/{run.pk}/sample").status_code == 202
    assert (run.folder / "control" / "save").exists() and (run.folder / "control" / "sample").exists()
    assert api("post", f"runs/{run.pk}/stop").json()["stopping"]


def test_events_come_after_the_last_known_one(api, run):
    lifecycle.claim(run, worker_name="w")
    with EventWriter(run.folder, attempt=1) as events:
        said = [events.write("progress", step=step, max_steps=4, loss=0.5) for step in (1, 2, 3)]
    lifecycle.record_events(run, said)

    assert [event["data"]["step"] for event in api("get", f"runs/{run.pk}/events", after=1).json()["events"]] == [2, 3]
    assert api("get", f"runs/{run.pk}/events", after=-1).status_code == 422


def test_the_values_of_a_run_make_another_one(api, run):
    values = api("get", f"runs/{run.pk}/values").json()

    assert api("post", "runs", values).json()["parameters"] == run.config


def test_a_run_is_archived_and_found_there(api, run):
    assert api("patch", f"runs/{run.pk}", {"archived": True, "tags": "night"}).json()["archived"]
    assert api("get", "runs").json()["count"] == 0
    assert api("get", "runs", archived="true", q="night").json()["count"] == 1


def test_a_run_without_its_state_is_not_continued(api, run):
    lifecycle.request_stop(run)
    answer = api("post", f"runs/{run.pk}/continue", {"more_steps": 5})

    assert (answer.status_code, answer.json()["code"]) == (409, "run.no_resume_state")


def test_files_of_a_run_come_with_ranges_and_weights_do_not_come_here(api, run, run_checkpoint):
    (run.folder / "log.txt").write_text("0123456789")

    part = api.client.get(f"/api/v1/runs/{run.pk}/files/log.txt", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.getvalue()) == (206, b"234")
    assert api("get", f"runs/{run.pk}/files/checkpoints/global_step=000002/lora.safetensors").status_code == 404
    assert api("get", f"runs/{run.pk}/files/../../db.sqlite3").status_code == 404


# --- checkpoints


def test_a_checkpoint_is_renamed_pinned_and_retired(api, run_checkpoint):
    changed = api("patch", f"checkpoints/{run_checkpoint.pk}", {"name": "the good one", "pinned": True, "retired": True}).json()

    assert (changed["name"], changed["pinned"], changed["retired"]) == ("the good one", True, True)
    assert (run_checkpoint.run.folder / "pinned").read_text() == "2\n"
    assert api("get", "checkpoints", retired="true").json()["count"] == 1


def test_a_taken_name_is_refused(api, run_checkpoint):
    answer = api("patch", f"checkpoints/{run_checkpoint.pk}", {"name": "tiny"})

    assert (answer.status_code, list(answer.json()["errors"])) == (422, ["name"])


def test_a_checkpoint_is_verified(api, checkpoint, run_checkpoint):
    assert api("post", f"checkpoints/{checkpoint.pk}/verify").json()["whole"]
    assert not api("post", f"checkpoints/{run_checkpoint.pk}/verify").json()["whole"]


def test_weights_are_downloaded_in_pieces(api, run_checkpoint):
    part = api.client.get(f"/api/v1/checkpoints/{run_checkpoint.pk}/download", headers={"Range": "bytes=0-2"})

    assert (part.status_code, part.getvalue()) == (206, b"wei")


def test_a_checkpoint_recommends_parameters(api, checkpoint):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(defaults={"audio_length_in_s": 2.6, "unknown": 1})

    assert api("get", f"checkpoints/{checkpoint.pk}/recommended").json() == {"parameters": {"audio_length_in_s": 2.6}}


# --- generations


def test_sounds_are_asked_for(api, checkpoint):
    answer = api("post", "generations", {"checkpoint": str(checkpoint.pk), "parameters": {"prompt": "a bell", "seed": 3}})

    assert (answer.status_code, answer.json()["prompt"], answer.json()["place"]) == (202, "a bell", 1)
    assert api("post", "generations", {"checkpoint": str(checkpoint.pk), "parameters": {}}).json()["errors"] == {"prompt": "prompt is empty: say what you want to hear"}


def test_a_sound_is_fetched(api, generation):
    (generation.folder / "0.wav").write_bytes(wav_bytes(tone(440)))
    Waveform.objects.create(generation=generation, index=0, seed=1, audio="0.wav", sha256="0" * 64, duration_s=1, sample_rate_hz=16000)

    file = api("get", f"generations/{generation.pk}").json()["sounds"][0]["file"]
    assert api("get", f"generations/{generation.pk}/files/{file}").getvalue().startswith(b"RIFF")
    assert api("get", f"generations/{generation.pk}/files/config.json").status_code == 404


def test_a_generation_is_stopped_retried_liked_and_deleted(api, generation):
    address = f"generations/{generation.pk}"
    assert api("delete", address).json()["code"] == "run.active"
    assert api("post", f"{address}/stop").json()["status"] == "cancelled"
    assert api("patch", address, {"favourite": True}).json()["favourite"]
    assert api("get", "generations", favourites="true").json()["count"] == 1
    assert api("post", f"{address}/retry").json()["status"] == "queued"
    assert api("post", f"{address}/retry").status_code == 409
    api("post", f"{address}/stop")
    assert api("delete", address).status_code == 204
    assert api("get", address).status_code == 404


def test_a_list_costs_the_same_queries_however_long(api, alice, checkpoint, django_assert_max_num_queries):
    from generation_app import services

    for number in range(5):
        services.create_generation(owner=alice, checkpoint=checkpoint, values={"prompt": f"bell {number}"})
    with django_assert_max_num_queries(12):
        assert len(api("get", "generations").json()["items"]) == 5


# --- the studio


def test_the_state_names_workers_jobs_and_room(api, run):
    state = api("get", "state").json()

    assert {"kind": "training", "queued": 1, "running": 0} in state["jobs"]
    assert [queue["alive"] for queue in state["queues"]] == [False, False, False]
    assert 0 < state["disk_free_bytes"] <= state["disk_total_bytes"]


@pytest.mark.parametrize(("kind", "config"), [("finetune", FinetuneConfig), ("generate", GenerateConfig)])
def test_parameters_are_described_by_the_configuration_itself(api, kind, config):
    assert api("get", f"schemas/{kind}").json() == config.json_schema()
    described = api("get", "openapi.json").json()["components"]["schemas"]
    name = "RunRequest" if kind == "finetune" else "GenerationRequest"
    assert described[name]["properties"]["parameters"]["properties"] == config.json_schema()["properties"]


def test_a_problems_type_leads_to_its_words(api):
    problem = api("get", f"runs/{uuid.uuid4()}").json()

    assert api("get", problem["type"]).json()["title"] == problem["title"]


@pytest.mark.parametrize(("method", "address", "status", "code"), [("get", "nowhere", 404, "api.not_found"), ("put", "runs", 405, "api.method"), ("get", "runs/7", 404, "api.not_found")])
def test_what_django_refuses_has_the_same_shape(api, method, address, status, code):
    answer = api(method, address)

    assert (answer.status_code, answer.headers["Content-Type"], answer.json()["code"]) == (status, "application/problem+json", code)


@pytest.mark.parametrize("body", ["{", "[]", "null", '"x"', '{"dataset": 1}', "\xff"])
def test_garbage_is_refused_in_words(api, body):
    answer = api.client.post("/api/v1/runs", body.encode("latin-1"), content_type="application/json")

    assert answer.status_code in (400, 422)
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_request_keeps_its_id(api):
    answer = api.client.get("/api/v1/nowhere", headers={"X-Request-Id": "abc-12345"})
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == "abc-12345"

    forged = api.client.get("/api/v1/nowhere", headers={"X-Request-Id": "two\tlines"})
    assert len(forged.headers["X-Request-Id"]) == 32


def test_the_documentation_lists_every_operation_and_needs_nothing_inline(alice_client, api):
    page = alice_client.get("/api/v1/docs").content.decode()

    for address in api("get", "openapi.json").json()["paths"]:
        assert address in page
    assert "<script>" not in page and "style=" not in page and "//cdn" not in page


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x", "text/plain"])
def test_an_upload_that_is_none_is_refused_in_words(api, content_type):
    answer = api.client.generic("POST", "/api/v1/datasets", b"--x\r\nnot a part", content_type=content_type)

    assert answer.status_code in (400, 422)
    assert answer.headers["Content-Type"] == "application/problem+json"


# --- models in and out, and evaluations


def test_an_export_is_put_in_line_fetched_and_deleted(api, run_checkpoint, checkpoint):
    answer = api("post", "conversions/export", {"checkpoint": str(checkpoint.pk), "format": "diffusers"})
    assert (answer.status_code, answer.json()["direction"], answer.json()["downloadable"]) == (202, "export", False)

    address = answer.headers["Location"]
    assert api("delete", address).json()["code"] == "run.active"
    assert api("get", f"{address}/file").status_code == 404
    assert api("post", f"{address}/stop").json()["status"] == "cancelled"
    assert api("get", "conversions").json()["count"] == 1
    assert api("delete", address).status_code == 204


@pytest.mark.parametrize("source", ["../../db.sqlite3", "/etc/passwd", "nothing.ckpt", "hub:no such"])
def test_what_is_no_model_is_not_brought_in(api, source):
    answer = api("post", "conversions/import", {"source": source})

    assert 400 <= answer.status_code < 500
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_an_evaluation_is_put_in_line_and_stopped(api, dataset, checkpoint):
    answer = api("post", "evaluations", {"checkpoint": str(checkpoint.pk), "dataset": str(dataset.pk)})
    assert (answer.status_code, answer.json()["dataset_name"]) == (202, dataset.name)

    address = answer.headers["Location"]
    assert api("get", f"{address}/events").json() == {"events": []}
    assert api("post", f"{address}/stop").json()["status"] == "cancelled"
    assert api("delete", address).status_code == 204


def test_an_evaluation_against_itself_is_refused(api, dataset, checkpoint):
    answer = api("post", "evaluations", {"checkpoint": str(checkpoint.pk), "dataset": str(dataset.pk), "against": str(checkpoint.pk)})

    assert (answer.status_code, answer.json()["code"]) == (422, "evaluation.same_checkpoint")


@pytest.fixture
def listening(api, checkpoint, run_checkpoint) -> Listening:
    """A test of two pairs whose sounds are made: tones of two pitches."""
    answer = api("post", "listenings", {"checkpoint": str(run_checkpoint.pk), "against": str(checkpoint.pk), "name": "ears", "parameters": {"prompts": ["a bell", "rain"]}})
    assert answer.status_code == 202, answer.json()
    made = Listening.objects.get()
    (made.folder / "pairs").mkdir()
    for pair in range(2):
        for subject, pitch in enumerate((440, 880)):
            (made.folder / "pairs" / f"{pair:04d}-{subject}.wav").write_bytes(wav_bytes(tone(pitch, 0.2)))
    Listening.objects.update(status="succeeded")
    return made


def test_a_blind_test_is_answered_and_names_nothing_before_its_end(api, listening, run_checkpoint, checkpoint):
    address = f"listenings/{listening.pk}"
    hidden = (str(run_checkpoint.pk), str(checkpoint.pk), run_checkpoint.name)

    for _ in range(2):
        pair = api("get", f"{address}/next").json()
        assert api("get", pair["a"]).headers["Content-Type"] == "audio/wav"
        assert not any(word in api("get", f"{address}/next").content.decode() + api("get", address).content.decode() for word in hidden)
        assert api("get", f"{address}/results").status_code == 409
        assert api("post", f"{address}/answers", {"pair": pair["pair"], "choice": "a"}).status_code == 200

    assert api("get", f"{address}/next").json()["pair"] is None
    assert api("get", address).json()["checkpoint"] == str(run_checkpoint.pk)
    figures = api("get", f"{address}/results").json()["together"]
    assert (figures["wins"] + figures["losses"], figures["neither"]) == (2, 0)
    assert api("post", f"{address}/answers", {"pair": 0, "choice": "b"}).status_code == 409


def test_a_blind_test_is_nothing_to_a_stranger(charlies_api, listening):
    for address in ("", "/next", "/events", "/results", "/sounds/1/a"):
        assert charlies_api("get", f"listenings/{listening.pk}{address}").status_code == 404


def test_a_run_is_estimated_without_being_made(api, dataset, checkpoint):
    answer = api("post", "runs/estimate", {"dataset": str(dataset.pk), "checkpoint": str(checkpoint.pk), "parameters": {"max_train_steps": 4}})

    assert answer.status_code == 200, answer.json()
    assert answer.json()["memory_bytes"] == sum(answer.json()["memory"].values())
    assert not TrainingRun.objects.exists()


def test_a_run_that_cannot_be_on_this_machine_is_refused_even_by_force(api, dataset, checkpoint):
    wanted = {"dataset": str(dataset.pk), "checkpoint": str(checkpoint.pk), "force": True, "parameters": {"mixed_precision": "fp16"}}

    assert api("post", "runs", wanted).json()["code"] == "preflight.refused"
