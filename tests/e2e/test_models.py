"""A real checkpoint comes in by click, makes a sound, and goes out again in its own layout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gpu.originals.layouts import describe_file
from tests.e2e.test_story import SLOW_MS, fill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_from_an_original_checkpoint_to_a_sound_and_back(page: Page, studio, original, tmp_path):
    small = original("audioldm-s")
    shutil.copytree(small.tokenizers, studio.data_dir / "tokenizers", dirs_exist_ok=True)

    # Upload: what it is stands there before anything is done.
    page.goto("/checkpoints/")
    page.get_by_role("link", name="Bring in a model").click()
    page.locator("[name=model]").set_input_files(small.path)
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url(re.compile(r"/choose/"), timeout=SLOW_MS)
    expect(page.get_by_text("non-commercial").first).to_be_visible()
    expect(page.get_by_text("written by the AudioLDM 1 code")).to_be_visible()
    expect(page.locator("[name=weights]")).to_have_value("ema")
    fill(page, name="small one")
    page.get_by_role("button", name="Bring in").click()

    # Its progress moves without a reload.
    page.wait_for_url(re.compile(r"/conversions/[0-9a-f-]{36}/"))
    expect(page.locator("[data-progress-text]")).to_have_text(re.compile("Reading|Comparing|Looking|Writing|Computing"), timeout=SLOW_MS)
    expect(page.locator("[data-fragment=status]")).to_have_text("finished", timeout=SLOW_MS)
    expect(page.get_by_role("heading", name="small one", exact=True)).to_be_visible()

    # It makes a sound.
    page.get_by_role("link", name="Generate with it").click()
    fill(page, prompt="a dog barking", num_inference_steps=2, audio_length_in_s=0.5, num_waveforms_per_prompt=1)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_url(re.compile(r"/generation/[0-9a-f-]{36}/"))
    expect(page.locator("article.candidate")).to_have_count(1, timeout=SLOW_MS)

    # It goes out again as .ckpt, and a download that broke off goes on.
    page.goto("/checkpoints/")
    page.get_by_role("link", name="small one").click()
    page.locator("tr", has_text="original .ckpt").get_by_role("button", name="Export fp32").click()
    page.wait_for_url(re.compile(r"/conversions/[0-9a-f-]{36}/"))
    expect(page.locator("[data-fragment=status]")).to_have_text("finished", timeout=SLOW_MS)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "small-one.ckpt"
    whole = Path(download.value.path()).read_bytes()
    (tmp_path / "back.ckpt").write_bytes(whole)
    assert describe_file(tmp_path / "back.ckpt").parameters == describe_file(small.path).parameters
    rest = page.request.get(f"{page.url}file/", headers={"Range": f"bytes={len(whole) - 5}-"})
    assert (rest.status, rest.body()) == (206, whole[-5:])
