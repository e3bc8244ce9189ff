"""Runs side by side: who sees them, what is compared with what, and the table for a spreadsheet."""

import csv
import io
import json
import re

import pytest
from django.test import Client
from django.urls import reverse

from audioldm_site.jobs.models import Status
from gpu.config import FinetuneConfig
from tests.site.test_pages import count_queries, make_run, progress, sample, tell
from training_app import comparison, selectors
from training_app.models import TrainingRun

pytestmark = pytest.mark.django_db
PAGE = "training:compare"


def address(name, *runs) -> str:
    return f"{reverse(name)}?{'&'.join(f'run={run.pk}' for run in runs)}"


def validated(step: int, loss: float) -> tuple[str, dict]:
    return "validated", {"step": step, "loss": loss}


@pytest.fixture
def pair(alice, base_checkpoint):
    """Two runs of one dataset, the second with another learning rate and a lower loss."""
    slow = make_run(alice, base_checkpoint, name="slow", status=Status.SUCCEEDED, best_validation_loss=0.5)
    fast = make_run(alice, base_checkpoint, name="fast", status=Status.SUCCEEDED, best_validation_loss=0.4)
    fast.config = {**FinetuneConfig(max_train_steps=1_000, lr_warmup_steps=10, learning_rate=3e-4).to_dict()}
    tell(slow, ("started", {"step": 0}), progress(1), progress(2), validated(2, 0.5), sample(slow, 0), sample(slow, 2))
    tell(fast, ("started", {"step": 0}), progress(1), progress(3), validated(3, 0.4), sample(fast, 3), sample(fast, 3, 1))
    return slow, fast


def snapshots(runs):
    return [selectors.run_snapshot(run) for run in runs]


def test_the_curves_of_all_runs_are_handed_to_the_page(alice_client, pair):
    page = alice_client.get(address(PAGE, *pair)).content.decode()

    state = json.loads(re.search(r'<script id="compare-state" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert [run["name"] for run in state["runs"]] == ["slow", "fast"]
    assert state["runs"][1]["loss"] == [[1, 3], [1.0, pytest.approx(1 / 3)]]
    assert state["runs"][0]["validation"] == [[2], [0.5]]
    assert not state["active"]


def test_only_the_options_that_differ_stand_in_the_open(pair):
    differ, alike = comparison.options(pair)

    assert [(row.label, row.values) for row in differ] == [("Learning rate", [1e-4, 3e-4])]
    assert "Batch size" in [row.label for row in alike]


def test_the_lowest_validation_loss_is_marked_where_the_clips_are_the_same(pair):
    rows = {row.label: row for row in comparison.outcomes(pair, snapshots(pair))}

    assert rows["best validation loss"].best == 1
    assert rows["CLAP score of the last sounds"].best is None  # both have 0.3: neither is better


def test_losses_of_different_clips_are_not_ranked(alice_client, pair):
    pair[1].manifest_digest = "11" * 32
    pair[1].save()

    rows = {row.label: row for row in comparison.outcomes(pair, snapshots(pair))}

    assert rows["best validation loss"].best is None
    assert "different clips" in alice_client.get(address(PAGE, *pair)).content.decode()


def test_the_newest_sounds_of_one_prompt_stand_beside_each_other(pair):
    [row] = comparison.sounds(pair, snapshots(pair))

    assert row["prompt"] == "a small bell" and row["one_seed"]
    assert [take["step"] for take in row["takes"]] == [2, 3]
    assert all(str(run.pk) in take["address"] for run, take in zip(pair, row["takes"], strict=True))


def test_a_prompt_that_one_run_lacks_leaves_a_gap(pair):
    tell(pair[1], ("sample", {**sample(pair[1], 4)[1], "prompt": "a door", "seed": 9}))

    rows = comparison.sounds(pair, snapshots(pair))

    assert [row["prompt"] for row in rows] == ["a small bell", "a door"]
    assert rows[1]["takes"][0] is None


def test_runs_of_others_are_not_compared(charlie_client, alice_client, pair):
    assert charlie_client.get(address(PAGE, *pair)).context["runs"] == []
    assert charlie_client.get(address("training:compare_curves", *pair)).json()["runs"] == []
    assert charlie_client.get(address("training:compare_csv", *pair)).status_code == 404


@pytest.fixture
def charlie_client(charlie):
    client = Client()
    client.force_login(charlie)
    return client


def test_nonsense_doubles_and_pretrainings_are_left_out(alice, alice_client, pair, base_checkpoint):
    other = make_run(alice, base_checkpoint, name="from nothing", task=TrainingRun.Task.PRETRAIN)

    runs = alice_client.get(address(PAGE, pair[0], pair[0], other) + "&run=nonsense&run=").context["runs"]

    assert [column["run"] for column in runs] == [pair[0]]


def test_more_runs_than_colours_are_cut_and_it_is_said(alice, alice_client, base_checkpoint):
    runs = [make_run(alice, base_checkpoint, name=f"run {number}") for number in range(8)]

    response = alice_client.get(address(PAGE, *runs))

    assert len(response.context["runs"]) == comparison.MAX_RUNS
    assert "You chose 8 runs" in response.content.decode()


def test_runs_of_the_same_dataset_are_offered_first(alice, pair, base_checkpoint):
    make_run(alice, base_checkpoint, name="newest, of other sounds").dataset_name = "bells"
    TrainingRun.objects.filter(name__startswith="newest").update(dataset_name="bells")

    offered = comparison.offered_runs(alice, query="", chosen=[pair[0]])

    assert [run.name for run in offered] == ["fast", "newest, of other sounds"]
    assert [run.name for run in comparison.offered_runs(alice, query="bells", chosen=[])] == ["newest, of other sounds"]


def test_the_table_has_every_step_and_what_was_taken_back_is_not_in_it(alice_client, pair):
    slow, fast = pair
    slow.name = "=SUM(A1)"
    tell(slow, ("started", {"step": 1}), progress(2), attempt=2)

    response = alice_client.get(address("training:compare_csv", slow, fast))
    rows = list(csv.DictReader(io.StringIO(b"".join(response.streaming_content).decode())))

    assert response["Content-Type"].startswith("text/csv")
    assert [(row["run"], row["step"], row["validation_loss"]) for row in rows] == [
        ("'=SUM(A1)", "1", ""), ("'=SUM(A1)", "2", ""), ("fast", "1", ""), ("fast", "3", ""), ("fast", "3", "0.4")]  # fmt: skip
    assert float(rows[1]["loss_smooth"]) == 0.5


def test_a_comparison_costs_the_same_queries_however_long_the_runs_are(alice_client, pair):
    few = count_queries(alice_client, address(PAGE, *pair))
    for run in pair:
        tell(run, *[progress(step) for step in range(4, 40)], *[validated(step, 0.3) for step in range(4, 40)])

    assert count_queries(alice_client, address(PAGE, *pair)) == few


def test_the_page_without_a_choice_offers_runs(alice_client, pair):
    page = alice_client.get(reverse(PAGE)).content.decode()

    assert "slow" in page and "fast" in page and "What came of it" not in page
