"""Evaluations and listening tests as people meet them: services, pages, commands."""

from __future__ import annotations

import json
import re

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from audioldm_site.accounts import sharing
from audioldm_site.jobs.models import Status
from datasets_app import services as datasets
from datasets_app.models import Split
from generation_app import best, evaluations, listenings, tasks
from generation_app.models import Evaluation, Listening, ListeningAnswer, ListeningSession
from gpu.config import ConfigError, EvaluateJob
from gpu.errors import Fault
from gpu.manifest import TRAIN, ManifestClip, read_manifest, write_manifest
from gpu.sound import write_wav
from tests.factories import tone
from training_app.models import Checkpoint, TrainingRun

pytestmark = pytest.mark.django_db
recorded = pytest.mark.django_db(transaction=True)  # the recorder thread has a connection of its own
FEW = {"prompts": 4, "num_inference_steps": 1, "audio_length_in_s": 0.5}
PROMPTS = ["a bell", "rain", "a dog barking", "wind"]


@pytest.fixture
def held_out(dataset):
    datasets.resplit(dataset, seed=0, validation_share=0.3)
    return dataset


@pytest.fixture
def run(checkpoint, alice) -> TrainingRun:
    run = TrainingRun.objects.create(owner=alice, name="tuning", dataset_name="tones", base_checkpoint=checkpoint, config={})
    run.folder.mkdir(parents=True)
    return run


@pytest.fixture
def tuned(checkpoint, run, alice) -> Checkpoint:
    return at_step(run, 100)


def at_step(run: TrainingRun, step: int, **metrics: float) -> Checkpoint:
    """A checkpoint row without weights of its own."""
    return Checkpoint.objects.create(
        owner=run.owner, name=f"tuned secretly, step {step}", family="audioldm2", format="run", origin="run", run=run, base=run.base_checkpoint,
        global_step=step, metrics=metrics, path=f"runs/{run.pk}/{step}",
    )  # fmt: skip


@pytest.fixture
def evaluation(checkpoint, held_out, alice) -> Evaluation:
    return evaluations.create_evaluation(owner=alice, checkpoint=checkpoint, dataset=held_out, values=FEW)


@pytest.fixture
def listening(checkpoint, tuned, alice) -> Listening:
    """A test whose sounds are there, as the worker leaves them: the first checkpoint's are 440 Hz, the other's 880 Hz."""
    listening = Listening.objects.create(
        owner=alice, name="Which one?", checkpoint=tuned, against=checkpoint, pair_count=len(PROMPTS), status=Status.SUCCEEDED,
        config={"prompts": PROMPTS, "audio_length_in_s": 0.5},
    )  # fmt: skip
    (listening.folder / "pairs").mkdir(parents=True)
    for pair in range(len(PROMPTS)):
        for subject, hertz in enumerate((440, 880)):
            write_wav(listening.folder / "pairs" / f"{pair:04d}-{subject}.wav", tone(hertz, 0.5), 16_000, recipe={})
    return listening


def client_of(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


# Evaluations


def test_an_evaluation_freezes_what_it_compares(evaluation, checkpoint, held_out):
    job = EvaluateJob.read(evaluation.folder)
    assert (job.subjects[0].model.base_sha256, job.ears, job.dataset) == (checkpoint.sha256, str(checkpoint.folder), held_out.name)
    assert len(read_manifest(evaluation.folder)) == 10


def test_a_clip_that_the_checkpoint_was_trained_on_is_not_held_out(checkpoint, tuned, run, held_out, alice):
    validation = held_out.clips.filter(split=Split.VALIDATION).first()
    write_manifest(run.folder, [ManifestClip(audio="x", caption="x", sha256=validation.sha256, duration_s=1.0, split=TRAIN)])
    tuned.folder.mkdir(parents=True)
    evaluation = evaluations.create_evaluation(owner=alice, checkpoint=tuned, dataset=held_out, values=FEW)
    splits = {clip.sha256: clip.split for clip in read_manifest(evaluation.folder)}
    assert splits[validation.sha256] == TRAIN
    assert sum(split == Split.VALIDATION for split in splits.values()) == held_out.clips.filter(split=Split.VALIDATION).count() - 1


def test_wrong_values_leave_neither_row_nor_folder(checkpoint, held_out, settings):
    with pytest.raises(ConfigError, match="prompts \\(1\\) must be at least 2"):
        evaluations.create_evaluation(owner=None, checkpoint=checkpoint, dataset=held_out, values={"prompts": 1})
    assert not Evaluation.objects.exists()
    assert not list((settings.DATA_DIR / "evaluations").iterdir())


def test_a_checkpoint_is_not_compared_with_itself(checkpoint, held_out):
    with pytest.raises(Fault) as caught:
        evaluations.create_evaluation(owner=None, checkpoint=checkpoint, against=checkpoint, dataset=held_out, values={})
    assert caught.value.code == "evaluation.same_checkpoint"


@recorded
def test_a_finished_evaluation_shows_its_figures_sounds_and_nearest_training_sounds(evaluation, alice_client):
    tasks.run_evaluation(str(evaluation.pk))
    evaluation.refresh_from_db()
    assert evaluation.status == Status.SUCCEEDED, evaluation.error_detail
    assert evaluation.summary["subjects"]["checkpoint"]["clap_score"]["n"] == 4

    page = alice_client.get(reverse("evaluation:evaluation", args=[evaluation.pk])).content.decode()
    assert page.count("nearest training sound,") == 4
    assert "4 sounds against 3: below 8 of each it says nothing" in page
    sounds = re.findall(r'data-src="(/evaluation/[^"]+\.wav)"', page)
    assert len(set(sounds)) == 4
    assert alice_client.get(sounds[0]).status_code == 200
    assert alice_client.get(sounds[0].replace("/files/", "/spectrogram/")).headers["Content-Type"] == "image/png"
    clips = re.findall(r'data-src="(/datasets/[^"]+)"', page)
    assert alice_client.get(clips[0]).status_code == 200

    assert alice_client.get(reverse("evaluation:file", args=[evaluation.pk, "report.json"])).status_code == 200
    assert "clap_score" in alice_client.get(reverse("evaluation:table", args=[evaluation.pk])).content.decode()
    assert alice_client.get(reverse("evaluation:file", args=[evaluation.pk, "config.json"])).status_code == 404
    assert "4" in alice_client.get(reverse("evaluation:index")).content.decode()


@recorded
def test_a_reader_without_the_dataset_hears_no_training_sound(evaluation, bob):
    tasks.run_evaluation(str(evaluation.pk))
    sharing.share(evaluation)
    page = client_of(bob).get(reverse("evaluation:evaluation", args=[evaluation.pk])).content.decode()
    assert page.count("nearest training sound,") == 4
    assert "/datasets/" not in page.split('id="sounds-head"')[1]


def test_charlie_sees_nothing_of_alices_evaluation(evaluation, charlie):
    client = client_of(charlie)
    for name, arguments in (("evaluation", []), ("events", []), ("table", []), ("file", ["report.json"])):
        assert client.get(reverse(f"evaluation:{name}", args=[evaluation.pk, *arguments])).status_code == 404
    for name in ("stop", "retry", "delete"):
        assert client.post(reverse(f"evaluation:{name}", args=[evaluation.pk])).status_code == 404
    assert evaluation.dataset_name not in client.get(reverse("evaluation:index")).content.decode()


@recorded
def test_a_stopped_evaluation_goes_on_where_it_was(evaluation):
    evaluations.request_stop(evaluation)
    evaluation.refresh_from_db()
    assert evaluation.status == Status.CANCELLED
    assert evaluations.retry(evaluation)
    tasks.run_evaluation(str(evaluation.pk))
    evaluation.refresh_from_db()
    assert evaluation.status == Status.SUCCEEDED


def test_the_form_makes_an_evaluation_beside_what_it_was_trained_from(alice_client, tuned, held_out, checkpoint):
    tuned.folder.mkdir(parents=True)
    page = alice_client.get(f"{reverse('evaluation:new')}?checkpoint={tuned.pk}&dataset={held_out.pk}")
    assert page.status_code == 200
    answer = alice_client.post(
        reverse("evaluation:new"),
        {"checkpoint": tuned.pk, "dataset": held_out.pk, "against": "base", "seed": 0, "kernel": "gaussian", "sampler": "ddim", "guidance_scale": 3.5, **FEW},
    )
    made = Evaluation.objects.get()
    assert answer.headers["Location"] == reverse("evaluation:evaluation", args=[made.pk])
    assert (made.against, made.config["prompts"]) == (checkpoint, 4)


def test_the_form_says_what_is_wrong(alice_client, checkpoint, held_out):
    answer = alice_client.post(reverse("evaluation:new"), {"checkpoint": checkpoint.pk, "dataset": held_out.pk, "prompts": "many"})
    assert answer.status_code == 422
    assert "must be a whole number" in answer.content.decode()


@recorded
def test_evaluate_prints_the_figures(capsys, checkpoint, held_out):
    call_command("evaluate", "--checkpoint", "tiny", "--dataset", held_out.name, "--prompts", "3", "--num_inference_steps", "1", "--audio_length_in_s", "0.5", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["subjects"]["checkpoint"]["clap_score"]["n"] == 3
    assert result["names"]["held_out"] == "held-out real sounds"
    assert result["subjects"]["checkpoint"]["kad"]["value"] is None


@recorded
def test_evaluate_refuses_a_clap_that_cannot_hear(capsys, checkpoint, held_out, tmp_path):
    with pytest.raises(SystemExit):
        call_command("evaluate", "--checkpoint", "tiny", "--dataset", held_out.name, "--clap", str(tmp_path))
    assert capsys.readouterr().err.splitlines()[-1].startswith("evaluation.cannot_hear: ")


# Blind listening


def test_nothing_that_a_listener_gets_names_a_checkpoint(listening, alice_client):
    page = alice_client.get(reverse("listening:listening", args=[listening.pk]))
    sounds = re.findall(r'data-src="([^"]+)"', page.content.decode())
    answers = [page, alice_client.get(reverse("listening:index")), *(alice_client.get(address) for address in sounds)]
    secrets = (listening.checkpoint.name, "secretly", str(listening.checkpoint_id), str(listening.against_id), ">tiny<", "0000-0", "-1.wav")
    for answer in answers:
        body = b"".join(answer) if answer.streaming else answer.content
        said = body.decode("latin-1") + str(dict(answer.headers))
        assert [word for word in secrets if word in said] == []
    assert len(sounds) == 2
    assert not {"ETag", "Last-Modified"} & set(answers[-1].headers)


def test_both_sides_are_served_with_headers_that_differ_in_nothing(listening, alice_client):
    alice_client.get(reverse("listening:listening", args=[listening.pk]))
    a, b = (alice_client.get(reverse("listening:sound", args=[listening.pk, 1, side])).headers for side in "ab")
    differing = {name for name in a if a[name] != b[name]}
    assert differing <= {"Content-Disposition", "X-Request-ID", "X-Request-Id"}  # the last is random
    assert a["Content-Disposition"].replace("1a", "1b") == b["Content-Disposition"]


def test_names_and_sounds_by_checkpoint_are_refused_before_the_end(listening, alice_client):
    alice_client.get(reverse("listening:listening", args=[listening.pk]))
    assert alice_client.get(reverse("listening:revealed", args=[listening.pk, 0, 0])).status_code == 404


def hertz_of(response) -> int:
    """The pitch of a served sound: it tells which checkpoint's it is."""
    import io

    import numpy as np
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(b"".join(response)))
    return round(int(np.abs(np.fft.rfft(samples)).argmax()) * rate / len(samples) / 440) * 440


def test_an_answer_is_kept_for_the_checkpoint_that_was_heard(listening, alice_client, alice):
    page = reverse("listening:listening", args=[listening.pk])
    for number in range(1, 5):
        shown = alice_client.get(page)
        heard = {side: hertz_of(alice_client.get(reverse("listening:sound", args=[listening.pk, number, side]))) for side in "ab"}
        assert set(heard.values()) == {440, 880}
        better = next(side for side, hertz in heard.items() if hertz == 440)
        alice_client.post(reverse("listening:answer", args=[listening.pk]), {"pair": shown.context["pair"], "choice": better})
    assert set(ListeningAnswer.objects.values_list("preference", flat=True)) == {"checkpoint"}
    done = alice_client.get(page).content.decode()
    assert "No difference beyond chance" in done  # 4 of 4: p = 0.125
    assert "100 %" in done and "51 to 100 %" in done
    assert "0.12" in done
    assert listening.checkpoint.name in done
    assert hertz_of(alice_client.get(reverse("listening:revealed", args=[listening.pk, 0, 1]))) == 880


def test_sides_and_order_differ_between_listeners_and_stay_for_each(listening, django_user_model):
    sessions = [listenings.session_of(listening, django_user_model.objects.create(username=f"listener {n}")) for n in range(12)]
    assert len({tuple(listenings.pair_order(session)) for session in sessions}) > 3
    swapped = [listenings.is_swapped(session, pair) for session in sessions for pair in range(4)]
    assert 8 < sum(swapped) < 40
    again = ListeningSession.objects.get(pk=sessions[0].pk)
    assert listenings.pair_order(again) == listenings.pair_order(sessions[0])


def test_an_answer_is_never_changed(listening, alice):
    session = listenings.session_of(listening, alice)
    assert listenings.answer(session, pair=2, choice="a")
    before = session.answers.get().preference
    assert not listenings.answer(session, pair=2, choice="b")
    assert session.answers.get().preference == before


@pytest.mark.parametrize(("pair", "choice"), [(4, "a"), (-1, "a"), (0, "c"), (0, "checkpoint")])
def test_an_answer_that_is_none_is_refused(listening, alice, pair, choice):
    with pytest.raises(Fault) as caught:
        listenings.answer(listenings.session_of(listening, alice), pair=pair, choice=choice)
    assert caught.value.code == "listening.invalid"


def test_answers_of_several_listeners_are_kept_apart(listening, alice, bob):
    sharing.share(listening)
    for user, choices in ((alice, 4), (bob, 3)):
        session = listenings.session_of(listening, user)
        for pair in range(choices):
            wanted = "b" if listenings.is_swapped(session, pair) else "a"
            listenings.answer(session, pair=pair, choice=wanted if user == alice else "neither")
    listenings.finish(listenings.session_of(listening, bob))
    page = client_of(bob).get(reverse("listening:listening", args=[listening.pk]))
    assert [(name, tally.wins, tally.neither) for name, tally in page.context["results"].listeners] == [("alice", 4, 0), ("bob", 0, 3)]
    assert page.context["results"].together.wins == 4


def test_a_listener_who_is_not_done_counts_for_nothing_yet(listening, alice, bob):
    sharing.share(listening)
    listenings.answer(listenings.session_of(listening, bob), pair=0, choice="a")
    session = listenings.session_of(listening, alice)
    listenings.answer(session, pair=0, choice="neither")
    listenings.finish(session)
    page = client_of(alice).get(reverse("listening:listening", args=[listening.pk]))
    assert page.context["results"].together.answers == 1
    assert not listenings.answer(session, pair=1, choice="a")


def test_bob_may_answer_what_alice_shares_and_not_delete_it(listening, bob):
    sharing.share(listening)
    client = client_of(bob)
    client.get(reverse("listening:listening", args=[listening.pk]))
    assert client.post(reverse("listening:answer", args=[listening.pk]), {"pair": 0, "choice": "a"}).status_code == 302
    assert ListeningAnswer.objects.count() == 1
    assert client.post(reverse("listening:delete", args=[listening.pk])).status_code == 403
    assert Listening.objects.exists()


def test_charlie_hears_nothing_of_alices_test(listening, charlie):
    client = client_of(charlie)
    assert client.get(reverse("listening:listening", args=[listening.pk])).status_code == 404
    assert client.get(reverse("listening:sound", args=[listening.pk, 1, "a"])).status_code == 404
    assert client.post(reverse("listening:answer", args=[listening.pk]), {"pair": 0, "choice": "a"}).status_code == 404


@recorded
def test_the_form_makes_a_test_and_the_worker_its_sounds(alice_client, checkpoint, settings):
    import shutil

    from training_app import storage

    twin = shutil.copytree(checkpoint.folder, settings.DATA_DIR / "incoming" / "checkpoints" / "twin")
    config = twin / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    other = storage.register_checkpoint(twin, origin=Checkpoint.Origin.SCANNED, name="twin")
    alice_client.post(
        reverse("listening:new"),
        {"checkpoint": checkpoint.pk, "against": other.pk, "prompts": "a bell\nrain", "seed": 1, "num_inference_steps": 1, "sampler": "ddim", "guidance_scale": 3.5,
         "audio_length_in_s": 0.5},
    )  # fmt: skip
    made = Listening.objects.get()
    assert "tiny" not in made.name and "twin" not in made.name
    waiting = alice_client.get(reverse("listening:listening", args=[made.pk])).content.decode()
    assert "twin" not in waiting
    tasks.run_listening(str(made.pk))
    made.refresh_from_db()
    assert made.status == Status.SUCCEEDED, made.error_detail
    assert "Which sounds more like these words?" in alice_client.get(reverse("listening:listening", args=[made.pk])).content.decode()


def test_the_form_refuses_to_compare_a_whole_model_with_nothing(alice_client, checkpoint):
    answer = alice_client.post(reverse("listening:new"), {"checkpoint": checkpoint.pk, "prompts": "a bell"})
    assert "choose the other checkpoint" in answer.content.decode()


# Which checkpoint is best


def hear(owner, first: Checkpoint, second: Checkpoint, *, wins: int, losses: int, neither: int = 0) -> None:
    test = Listening.objects.create(owner=owner, name="x", checkpoint=first, against=second, pair_count=wins + losses + neither, status=Status.SUCCEEDED, config={})
    session = listenings.session_of(test, owner)
    preferences = ["checkpoint"] * wins + ["against"] * losses + ["neither"] * neither
    ListeningAnswer.objects.bulk_create(ListeningAnswer(session=session, pair=pair, preference=one) for pair, one in enumerate(preferences))
    listenings.finish(session)


def evaluate(checkpoint: Checkpoint, value: float, low: float, high: float, *, against: Checkpoint | None = None, difference=None, prompts=40) -> None:
    summary = {"manifest_digest": "m", "embedding_sha256": "e", "subjects": {"checkpoint": {"clap_score": {"value": value, "low": low, "high": high, "n": prompts}}}}
    if difference:
        summary["differences"] = {"clap_score": dict(zip(("value", "low", "high"), difference, strict=True))}
    Evaluation.objects.create(checkpoint=checkpoint, against=against, dataset_name="d", ears_name="e", status=Status.SUCCEEDED, config={"prompts": prompts}, summary=summary)


def test_the_lowest_validation_loss_is_best_where_nothing_else_is_known(run):
    at_step(run, 100, loss=0.30)
    lowest = at_step(run, 200, loss=0.25)
    found = best.suggest(run)
    assert (found.checkpoint, found.decided_by, found.ties) == (lowest, "loss", [])
    assert "0.25; the next is 20 % higher" in found.reasons[0]


def test_losses_within_one_percent_are_a_tie_and_called_one(run):
    at_step(run, 100, loss=0.2501)
    lowest = at_step(run, 200, loss=0.25)
    found = best.suggest(run)
    assert (found.checkpoint, found.decided_by, [row.global_step for row in found.ties]) == (lowest, "", [100])
    assert "Nothing tells it apart from step 100" in " ".join(found.doubts)


def test_blind_listeners_overrule_the_loss(run, alice):
    liked, lower = at_step(run, 100, loss=0.30), at_step(run, 200, loss=0.25)
    hear(alice, liked, lower, wins=10, losses=1)
    found = best.suggest(run)
    assert (found.checkpoint, found.decided_by) == (liked, "listening")
    assert "10 to 1" in found.reasons[0]


def test_a_few_answers_decide_nothing(run, alice):
    first, lower = at_step(run, 100, loss=0.30), at_step(run, 200, loss=0.25)
    hear(alice, first, lower, wins=4, losses=0)
    found = best.suggest(run)
    assert (found.checkpoint, found.decided_by) == (lower, "loss")
    assert "did not tell step 100 from step 200: 4 to 0" in found.doubts[0]


def test_a_clearly_higher_clap_score_overrules_the_loss(run):
    good, lower = at_step(run, 100, loss=0.30), at_step(run, 200, loss=0.25)
    evaluate(good, 0.50, 0.45, 0.55)
    evaluate(lower, 0.30, 0.25, 0.35)
    assert (best.suggest(run).checkpoint, best.suggest(run).decided_by) == (good, "clap")


def test_overlapping_clap_scores_decide_nothing(run):
    higher, lower = at_step(run, 100, loss=0.30), at_step(run, 200, loss=0.25)
    evaluate(higher, 0.50, 0.40, 0.60)
    evaluate(lower, 0.45, 0.35, 0.55)
    found = best.suggest(run)
    assert (found.checkpoint, found.decided_by) == (lower, "loss")
    assert "overlap" in found.doubts[0]


def test_clap_scores_of_other_prompts_are_not_compared(run):
    good, lower = at_step(run, 100, loss=0.30), at_step(run, 200, loss=0.25)
    evaluate(good, 0.50, 0.45, 0.55, prompts=40)
    evaluate(lower, 0.30, 0.25, 0.35, prompts=50)
    assert best.suggest(run).checkpoint == lower


def test_it_is_said_when_the_base_was_preferred(run, alice, checkpoint):
    at_step(run, 100, loss=0.30)
    lower = at_step(run, 200, loss=0.25)
    hear(alice, lower, checkpoint, wins=1, losses=12)
    assert "Blind listeners preferred tiny, which it was trained from: 12 to 1" in " ".join(best.suggest(run).doubts)


def test_without_evidence_there_is_no_suggestion(run):
    at_step(run, 100)
    assert best.suggest(run) is None
    at_step(run, 200)
    assert best.suggest(run).checkpoint is None


def test_best_checkpoint_says_why_and_pins(run, capsys):
    at_step(run, 100, loss=0.30)
    lowest = at_step(run, 200, loss=0.25)
    call_command("best_checkpoint", "tuning", "--pin", "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["checkpoint"], result["pinned"], result["decided_by"]) == (lowest.name, True, "loss")
    lowest.refresh_from_db()
    assert lowest.pinned
