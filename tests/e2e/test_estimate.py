"""Whether a run will fit, as the page of a new run tells it in a browser while values change."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.test_story import fill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def panel(page: Page) -> Locator:
    """The panel of a new run on the tiny model and the demo sounds."""
    page.goto("/training/new/")
    page.get_by_label("Dataset").select_option(label="demo")
    page.get_by_label("Start from").select_option(label="tiny")
    return page.locator("[data-fragment=estimate]")


def memory(panel: Locator) -> str:
    return panel.locator("p", has_text="Memory:").inner_text()


def test_the_estimate_appears_and_follows_preset_and_batch(page: Page, panel: Locator):
    for words in ("Memory: fits", "weights", "optimizer", "a step", "in all", "Disk:", "checkpoints"):
        expect(panel).to_contain_text(words)

    page.locator("[data-preset=quick]").click()
    expect(panel).to_contain_text("Memory: fits")
    quick = panel.inner_text()
    page.locator("[data-preset=full]").click()
    expect(panel).not_to_have_text(quick, use_inner_text=True)
    full = memory(panel)

    fill(page, train_batch_size=64)
    expect(panel.locator("p", has_text="Memory:")).not_to_have_text(full)


def test_too_little_memory_offers_what_fits_and_the_button_chooses_it(page: Page, panel: Locator):
    expect(panel).to_contain_text("Memory: fits")
    fill(page, train_batch_size=1024, audio_length_in_s=120)
    expect(panel).to_contain_text("does not fit")
    expect(panel).to_contain_text(re.compile("It needs about .* of memory"))
    panel.get_by_role("button", name="Use these values").click()
    expect(panel).to_contain_text("Memory: fits")
    expect(panel.locator(".error")).to_have_count(0)
    assert page.locator("[name=train_batch_size]").input_value() == "1"
    page.goto("/training/")
    expect(page.get_by_text("demo on tiny")).to_have_count(0)  # a check starts nothing


def test_too_little_disk_offers_fewer_checkpoints(page: Page, panel: Locator):
    fill(page, max_train_steps=10_000_000, checkpointing_steps=1)
    expect(panel).to_contain_text("It will write about")
    panel.get_by_role("button", name="Use these values").click()
    expect(panel.locator(".error")).to_have_count(0)
    assert page.locator("[name=checkpointing_steps]").input_value() == "1000000"


def test_a_check_without_a_dataset_marks_it_and_goes_there(page: Page, panel: Locator):
    page.get_by_label("Dataset").select_option(value="")
    page.get_by_role("button", name="Check whether it fits").click()
    expect(page.locator("[data-field=dataset] > p.error")).to_have_text("Choose the dataset to train on.")
    expect(page.get_by_label("Dataset")).to_be_focused()
    expect(panel).to_contain_text("mend what is marked (Dataset)")
