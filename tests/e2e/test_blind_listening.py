"""A blind comparison as a listener lives it: with the keyboard alone, and without a name until the end."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from gpu.tiny import write_tiny_audioldm2

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
SLOW_MS = 150_000
NAMES = ("tiny", "second secret")


def test_pairs_are_heard_and_judged_blindly_with_the_keyboard(page: Page, studio, tmp_path):
    other = write_tiny_audioldm2(tmp_path / "other", seed=1)
    assert studio.manage("import_checkpoint", str(other), "--name", NAMES[1]).returncode == 0
    told: list[str] = []
    page.on("response", lambda response: told.append(f"{response.url} {response.headers}"))

    # Ask for three pairs.
    page.goto("/listening/new/")
    page.locator("[name=checkpoint]").select_option(label=NAMES[0])
    page.locator("[name=against]").select_option(label=NAMES[1])
    for name, value in {"prompts": "a bell\nrain\nwind", "num_inference_steps": "1", "audio_length_in_s": "0.5"}.items():
        page.locator(f"[name={name}]").fill(value)
    told.clear()
    page.get_by_role("button", name="Make the sounds").click()
    page.wait_for_url(re.compile(r"/listening/[0-9a-f-]{36}/"))

    # The pairs come by themselves when the sounds are there; both can be played.
    expect(page.get_by_text("Which sounds more like these words?")).to_be_visible(timeout=SLOW_MS)
    for key, side in (("1", "a"), ("2", "b")):
        with page.expect_response(re.compile(rf"/sounds/1/{side}\.wav")) as response:
            page.keyboard.press(key)
        assert response.value.ok

    # Answer: A, B, no preference. Nothing that came until now has named anybody.
    for number, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowDown"), start=1):
        expect(page.get_by_text(f"pair {number} of 3")).to_be_visible()
        assert [name for name in NAMES if name in page.content()] == []
        page.keyboard.press(key)
    said = [line for line in told if "/static/" not in line]
    assert [line for line in said for name in NAMES if name in line or name.replace(" ", "%20") in line] == []

    # Then the names, the counts and both sounds of every pair.
    expect(page.get_by_role("heading", name="No difference beyond chance")).to_be_visible()
    expect(page.get_by_text(NAMES[1]).first).to_be_visible()
    expect(page.get_by_text("1 listener, 3 answers")).to_be_visible()
    expect(page.locator("article.pair .sound")).to_have_count(6)
    with page.expect_response(re.compile(r"/revealed/0-0\.wav")) as response:
        page.locator("article.pair .sound .play").first.click()
    assert response.value.ok
