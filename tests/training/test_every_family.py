"""Every family of original checkpoints comes in through the page, says what it can do, and goes out again as it came."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from django.core.files import File
from django.urls import reverse

from audioldm_site.jobs import lifecycle
from audioldm_site.jobs.models import Status
from gpu.events import EventTail
from gpu.originals import command
from gpu.originals.tensors import open_tensors
from tests.originals.fixtures import FAMILIES
from training_app import conversions
from training_app.models import Conversion

pytestmark = pytest.mark.django_db


@pytest.fixture
def clean(settings) -> Iterator[None]:
    """pytest keeps its folders for three sessions: of nine families that would be gigabytes."""
    yield
    shutil.rmtree(settings.DATA_DIR)


def carry_out(conversion: Conversion) -> Conversion:
    """The work of a conversion's process in this one, which has torch already: nine families twice would start eighteen."""
    assert lifecycle.claim(conversion, worker_name="w")
    conversions.prepare(conversion)
    command.main(["--job", str(conversion.folder)])
    lifecycle.record_events(conversion, list(EventTail(conversion.folder).read()))
    conversion.refresh_from_db()
    assert (conversion.status, conversion.error_detail) == (Status.SUCCEEDED, "")
    return conversion


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_comes_in_and_goes_out_through_the_page(family, original, alice_client, settings, clean):
    made = original(family)
    speaks = family == "audioldm2-speech"
    shutil.copytree(made.tokenizers, settings.DATA_DIR / "tokenizers", dirs_exist_ok=True)

    # It is described before anything is done.
    with open(made.path, "rb") as file:
        address = alice_client.post(reverse("checkpoints:upload"), {"model": File(file, name=f"{family}.ckpt")}).url
    described = alice_client.get(address)
    shown = described.content.decode()
    assert f"{family}.ckpt" in shown
    assert ("no fine-tuning" in shown) == ("no sounds" in shown) == speaks

    alice_client.post(address, {"name": family, "weights": "auto"})
    alice_client.post(address, {field.name: field.value() for field in described.context["form"] if field.value()} | {"name": family})
    row = carry_out(Conversion.objects.get()).checkpoint
    page = alice_client.get(reverse("checkpoints:checkpoint", args=[row.pk])).content.decode()
    assert ("Fine-tune from this" in page) == ("Generate with this" in page) == ("ranks candidates" in page) == (not speaks)
    offered = alice_client.get(reverse("training:new")).content.decode()
    assert (f'value="{row.pk}"' in offered) == (not speaks)

    # It goes out with the tensors that it came with.
    alice_client.post(reverse("checkpoints:export", args=[row.pk]), {"format": "ckpt", "dtype": "fp32"})
    export = carry_out(Conversion.objects.get(direction=Conversion.Direction.EXPORT))
    answer = alice_client.get(reverse("checkpoints:conversion_file", args=[export.pk]), headers={"Range": "bytes=0-3"})
    assert answer["Content-Disposition"] == f'attachment; filename="{family}.ckpt"'
    assert b"".join(answer.streaming_content) == b"PK\x03\x04"
    with open_tensors(made.path) as before, open_tensors(export.result_path) as after:
        assert after.names == before.names
