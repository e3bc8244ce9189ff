"""A large dataset in a browser: paused, the page reloaded in the middle, and gone on with."""

from __future__ import annotations

import hashlib
import io
import random
import re
import wave
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.test_story import SLOW_MS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CLIPS, CLIP_BYTES = 24, 2_000_000
BYTES_PER_S = 12_000_000


def large_zip(path: Path) -> Path:
    """48 MB of noise that no packing makes smaller."""
    noise = random.Random(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(CLIPS):
            file = io.BytesIO()
            with wave.open(file, "wb") as sound:
                sound.setparams((2, 2, 48_000, 0, "NONE", ""))
                sound.writeframes(noise.randbytes(CLIP_BYTES))
            archive.writestr(f"{number}.wav", file.getvalue())
        archive.writestr("metadata.csv", "audio,caption\n" + "".join(f"{number}.wav,noise {number}\n" for number in range(CLIPS)))
    return path


def choose(page: Page, archive: Path) -> None:
    page.locator("[name=archive]").set_input_files(archive)
    page.locator("#upload [name=name]").fill("much noise")
    page.get_by_role("button", name="Upload").click()


def test_an_upload_goes_on_after_a_pause_and_a_reload(page: Page, studio, tmp_path):
    archive = large_zip(tmp_path / "much noise.zip")
    offsets = []
    page.on("request", lambda request: offsets.append(int(request.headers["upload-offset"])) if request.method == "PATCH" else None)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": BYTES_PER_S})

    # It says how far it is, how fast, and how long it will take.
    page.goto("/datasets/")
    choose(page, archive)
    text = page.locator("[data-upload-text]")
    expect(text).to_have_text(re.compile(r"[\d.]+ MB of 48\.\d MB · [\d.]+ MB/s · \d+ s left"), timeout=SLOW_MS)

    # Paused it stays; resumed it goes on.
    page.get_by_role("button", name="Pause").click()
    expect(text).to_have_text(re.compile("Paused at"))
    page.get_by_role("button", name="Resume").click()
    page.wait_for_function("() => document.querySelector('#upload progress').value > 17_000_000", timeout=SLOW_MS)

    # The page is left in the middle. It tells what waits; the same file, chosen again, goes on where it was.
    page.goto("/datasets/")
    expect(page.get_by_text(re.compile(r"of 48\.\d MB, last"))).to_be_visible()
    before = len(offsets)
    choose(page, archive)
    page.wait_for_url(re.compile(r"/datasets/[0-9a-f-]{36}/"), timeout=SLOW_MS)
    assert offsets[before] >= 16 * 1024**2

    # The import has what was sent.
    expect(page.get_by_role("heading", name="much noise")).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_text("noise 0", exact=True).first).to_be_visible(timeout=SLOW_MS)
    digest = studio.manage("shell", "-v0", "-c", "from datasets_app.models import Dataset; print(Dataset.objects.get(name='much noise').source_sha256)")
    assert digest.stdout.strip().splitlines()[-1] == hashlib.sha256(archive.read_bytes()).hexdigest()


def test_a_large_file_that_is_no_model_is_refused_in_words(page: Page, tmp_path):
    (tmp_path / "noise.ckpt").write_bytes(random.Random(1).randbytes(17_000_000))
    page.goto("/checkpoints/import/")
    page.locator("[name=model]").set_input_files(tmp_path / "noise.ckpt")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("[data-upload-fault]")).to_contain_text("no model that we know", timeout=SLOW_MS)
    expect(page.get_by_role("button", name="Upload")).to_be_enabled()
