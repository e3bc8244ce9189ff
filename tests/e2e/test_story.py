"""The whole story, as a user would live it: bring sounds, fine-tune, watch and hear, stop, resume, continue, generate."""

from __future__ import annotations

import io
import json
import re

import pytest
import soundfile
from playwright.sync_api import Page, expect

from gpu.sound import read_recipe
from tests.factories import write_dataset_zip

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
SLOW_MS = 150_000


def fill(page: Page, **values: object) -> None:
    """Fill fields of the shown form by their names, opening the expert groups first."""
    closed = page.locator("details.panel:not([open]) summary")
    while closed.count():
        closed.first.click()
    for name, value in values.items():
        field = page.locator(f"[name={name}]")
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(label=str(value)) if name in ("dataset", "checkpoint") else field.select_option(str(value))
        else:
            field.fill(str(value))


def test_from_a_zip_to_a_sound(page: Page, studio, tmp_path):
    # Bring sounds.
    page.goto("/datasets/")
    page.get_by_label("Zip").or_(page.locator("[name=archive]")).first.set_input_files(write_dataset_zip(tmp_path / "my tones.zip"))
    page.locator("#upload [name=name]").fill("tones")
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_text("a steady tone of 200 hertz").first).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_role("heading", name="tones")).to_be_visible()

    # Fine-tune the tiny model, long enough to be stopped in the middle.
    page.goto("/training/new/?preset=quick")
    fill(page, dataset="tones", checkpoint="tiny", name="first run", max_train_steps=100_000, lr_warmup_steps=5, checkpointing_steps=50_000,
         train_batch_size=2, audio_length_in_s=0.5, num_inference_steps=2, validation_epochs=100_000, lora_rank=4)  # fmt: skip
    page.get_by_role("button", name="Start the run").click()
    page.wait_for_url(re.compile(r"/training/[0-9a-f-]{36}/"))
    run_url = page.url
    run_folder = studio.data_dir / "runs" / run_url.rstrip("/").split("/")[-1]

    # Watch and hear: the step moves without a reload, and the sounds of step 0 are there.
    step = page.locator("[data-live=step]")
    expect(step).not_to_have_text("0", timeout=SLOW_MS)
    first = step.inner_text()
    expect(step).not_to_have_text(first)
    expect(page.locator("[data-matrix] [data-step='0'], [data-matrix] td").first).to_be_visible()
    expect(page.locator("[data-chart=loss] canvas")).to_be_visible()
    page.get_by_role("button", name="Save now").click()
    expect(page.locator("[data-fragment=checkpoints] tr").nth(1)).to_be_visible()

    # Close the browser's page; the run goes on. A new page starts where the run is now.
    page.goto("about:blank")
    before = (run_folder / "events.jsonl").stat().st_size
    page.wait_for_timeout(1500)
    assert (run_folder / "events.jsonl").stat().st_size > before
    page.goto(run_url)

    # Stop and save, then resume.
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator("[data-fragment=status]")).to_have_text(re.compile("stopped"), timeout=SLOW_MS)
    stopped_at = _events(run_folder)[-1]["data"]["step"]
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("[data-fragment=status]")).to_have_text(re.compile("running"), timeout=SLOW_MS)
    page.wait_for_function("step => Number(document.querySelector('[data-live=step]').textContent.replace(/[^0-9]/g, '')) > step", arg=stopped_at, timeout=SLOW_MS)
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator("[data-fragment=status]")).to_have_text(re.compile("stopped"), timeout=SLOW_MS)
    events = _events(run_folder)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    resumed = next(event for event in events if event["type"] == "started" and event["attempt"] > 1)
    assert resumed["data"]["step"] == stopped_at

    # Generate from what was learned.
    page.locator("[data-fragment=checkpoints]").get_by_role("link", name=re.compile("[Gg]enerate")).first.click()
    page.wait_for_url(re.compile(r"/generation/"))
    fill(page, prompt="a steady tone of 400 hertz", seed=3, num_inference_steps=2, audio_length_in_s=0.5, num_waveforms_per_prompt=2)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_url(re.compile(r"/generation/[0-9a-f-]{36}/"))
    expect(page.locator("article.candidate")).to_have_count(2, timeout=SLOW_MS)
    expect(page.get_by_text("best fit")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="WAV").first.click()
    sound = download.value.path()
    samples, rate = soundfile.read(io.BytesIO(sound.read_bytes()))
    assert (len(samples), rate) == (8000, 16_000)
    assert "a steady tone of 400 hertz" in json.dumps(read_recipe(sound))

    # It is in the history, and its settings fill the form again.
    page.get_by_role("link", name="Use these settings").click()
    expect(page.locator("[name=prompt]")).to_have_value("a steady tone of 400 hertz")
    expect(page.locator("[name=seed]")).to_have_value("3")


def test_starter_and_demo_are_there_from_the_start(page: Page):
    page.goto("/datasets/")
    expect(page.get_by_role("link", name="demo")).to_be_visible()
    page.goto("/checkpoints/")
    expect(page.get_by_role("link", name="starter", exact=True)).to_be_visible()


def test_a_failed_run_says_why_and_the_next_one_starts(page: Page, studio, tmp_path):
    damaged = json.loads(studio.manage("import_dataset", str(write_dataset_zip(tmp_path / "bad.zip", clips=3)), "--name", "damaged", "--json").stdout)
    studio.manage("import_dataset", str(write_dataset_zip(tmp_path / "good.zip", clips=3, duration_s=0.9)), "--name", "whole")
    next((studio.data_dir / "datasets" / damaged["id"]).rglob("*.wav")).write_bytes(b"something else")
    few = ["--checkpoint", "tiny", "--max_train_steps", "3", "--num_inference_steps", "1", "--audio_length_in_s", "0.5", "--num_waveforms_per_prompt", "1", "--detach", "--json"]
    broken = json.loads(studio.manage("finetune", "--dataset", "damaged", "--name", "broken", *few).stdout)
    sound = json.loads(studio.manage("finetune", "--dataset", "whole", "--name", "sound", *few).stdout)
    page.goto(f"/training/{broken['id']}/")
    expect(page.locator("[data-fragment=status]")).to_have_text(re.compile("failed"), timeout=SLOW_MS)
    expect(page.get_by_text(re.compile("not what it was")).first).to_be_visible()
    page.goto(f"/training/{sound['id']}/")
    expect(page.locator("[data-fragment=status]")).to_have_text(re.compile("finished"), timeout=SLOW_MS)


def _events(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
