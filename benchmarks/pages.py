"""How long the heavy pages take: `python -m benchmarks.pages`.

A database of its own with a run of 100,000 events, a dataset of 10,000 clips and 1,000 more runs, and beside each page the same one with a
hundredth of the rows. In-process requests through the whole stack of middleware, templates and queries, without the network. The number of
queries must not grow with the rows.
"""

from __future__ import annotations

import os
import tempfile
from statistics import median
from time import perf_counter
from typing import Any

ROUNDS = 7


def main() -> None:
    with tempfile.TemporaryDirectory() as data_dir:
        os.environ |= {"DATA_DIR": data_dir, "DJANGO_SETTINGS_MODULE": "audioldm_site.settings", "LOG_LEVEL": "ERROR", "ALLOWED_HOSTS": "testserver"}
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        pages = {}
        for label, share in (("small", 100), ("large", 1)):
            pages |= {f"{name}, {label}": address for name, address in fill(share).items()}
        results = {name: measure(address) for name, address in pages.items()}
    tell(results)


def fill(share: int) -> dict[str, str]:
    """Rows by the ten thousand divided by `share`; the addresses of the pages that show them."""
    from django.urls import reverse

    from datasets_app.models import Clip, Dataset
    from training_app.models import TrainingEvent, TrainingRun

    events, clips, runs = 100_000 // share, 10_000 // share, 1_000 // share
    dataset = Dataset.objects.create(name=f"sounds {share}", status="ready", origin="imported", source_name="sounds.zip")
    Clip.objects.bulk_create(
        [
            Clip(dataset=dataset, position=n, path=f"{n}.wav", original_name=f"{n}.wav", caption=f"sound number {n}", sha256=f"{n:064}",
                 size_bytes=100_000, duration_s=5.0, sample_rate_hz=22_050, channels=1, peaks=[50] * 200)
            for n in range(clips)
        ],
        batch_size=2_000,
    )  # fmt: skip
    TrainingRun.objects.bulk_create(
        [TrainingRun(name=f"run {n} of {share}", dataset_name="sounds", config={"max_train_steps": 10}, status="succeeded", global_step=10) for n in range(runs)]
    )
    run = TrainingRun.objects.create(
        name=f"long {share}", dataset=dataset, dataset_name="sounds", config={"max_train_steps": events, "num_waveforms_per_prompt": 1},
        status="running", last_seq=events, attempt=1,
    )  # fmt: skip
    run.folder.mkdir(parents=True)
    TrainingEvent.objects.bulk_create(
        [
            TrainingEvent(job=run, seq=n, attempt=1, type="progress", at=run.created_at,
                          data={"step": n, "max_steps": events, "epoch": n // 100, "loss": 0.2, "loss_smooth": 0.2, "learning_rate": 1e-4, "grad_norm": 1.0})
            for n in range(1, events + 1)
        ],
        batch_size=5_000,
    )  # fmt: skip
    return {
        f"a run of {events} events": reverse("training:run", args=[run.pk]),
        f"a dataset of {clips} clips": reverse("datasets:dataset", args=[dataset.pk]),
    } | ({"the list of all runs": reverse("training:index"), "home": reverse("home")} if share == 1 else {})


def measure(address: str) -> dict[str, Any]:
    """Median milliseconds, number of queries and bytes of one page."""
    from django.contrib.auth import get_user_model
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    user, _ = get_user_model().objects.get_or_create(username="admin", defaults={"is_staff": True, "is_superuser": True})
    client = Client()
    client.force_login(user)
    times = []
    for _ in range(ROUNDS):
        with CaptureQueriesContext(connection) as queries:
            began = perf_counter()
            response = client.get(address)
            times.append((perf_counter() - began) * 1000)
        assert response.status_code == 200, (address, response.status_code)
    return {"ms": median(times[1:]), "first_ms": times[0], "queries": len(queries), "kib": len(response.content) / 1024}


def tell(results: dict[str, dict[str, Any]]) -> None:
    import json

    from benchmarks.report import RESULTS, machine

    print(f"{'':34} {'ms':>8} {'first':>8} {'queries':>8} {'KiB':>8}")
    for name, row in results.items():
        print(f"{name:34} {row['ms']:8.1f} {row['first_ms']:8.1f} {row['queries']:8} {row['kib']:8.0f}")
    (RESULTS / "pages.json").write_text(json.dumps({"machine": machine(), "pages": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
