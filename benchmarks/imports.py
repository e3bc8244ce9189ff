"""What importing a large dataset costs beside the least it could cost: `python -m benchmarks.imports [--clips 5000] [--seconds 4.5]`.

The floors are a plain unzip of the same file and a plain soundfile read of every clip, in this process. Ours unpacks, checks, decodes, hashes,
measures loudness and peaks and writes the rows. Noise in 16 bit, which does not compress, so that the archive has the size that its clips have.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import zipfile
from pathlib import Path
from time import perf_counter

RATE_HZ = 22_050


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=4.5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"DATA_DIR": str(home / "data"), "DJANGO_SETTINGS_MODULE": "audioldm_site.settings", "LOG_LEVEL": "ERROR"}
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        source = write_zip(home / "sounds.zip", arguments.clips, arguments.seconds)
        rows = {
            "plain unzip": timed(lambda: zipfile.ZipFile(source).extractall(home / "plain")),
            "plain read of every clip": timed(lambda: read_all(home / "plain")),
            "import_dataset": timed(lambda: import_it(source, arguments.clips)),
        }
        size = source.stat().st_size
    tell(rows, clips=arguments.clips, size_bytes=size)


def write_zip(path: Path, clips: int, seconds: float) -> Path:
    import io

    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(clips):
            buffer = io.BytesIO()
            soundfile.write(buffer, rng.normal(0, 0.1, int(RATE_HZ * seconds)).astype(np.float32), RATE_HZ, format="WAV")
            archive.writestr(f"{number:05}.wav", buffer.getvalue())
        archive.writestr("metadata.csv", "audio,caption\n" + "".join(f"{n:05}.wav,noise number {n}\n" for n in range(clips)))
    return path


def read_all(folder: Path) -> None:
    import soundfile

    for path in folder.glob("*.wav"):
        soundfile.read(path, dtype="float32")


def import_it(source: Path, clips: int) -> None:
    from datasets_app import services

    dataset = services.import_inline(source=source, name="sounds", origin="imported")
    assert dataset.clips.count() == clips


def timed(call) -> dict[str, float]:
    """Wall seconds, and the processor seconds of this process and its children."""
    before = sum(os.times()[:4])
    wall = perf_counter()
    call()
    return {"wall_s": perf_counter() - wall, "cpu_s": sum(os.times()[:4]) - before}


def tell(rows: dict[str, dict[str, float]], *, clips: int, size_bytes: int) -> None:
    from benchmarks.report import RESULTS, machine

    unzip, read, ours = rows.values()
    ratios = {
        "import / (unzip + read), wall": ours["wall_s"] / (unzip["wall_s"] + read["wall_s"]),
        "import / (unzip + read), cpu": ours["cpu_s"] / (unzip["cpu_s"] + read["cpu_s"]),
    }
    for name, row in rows.items():
        print(f"{name:28} {row['wall_s']:8.2f} s wall {row['cpu_s']:8.2f} s cpu {clips / row['wall_s']:8.0f} clips/s {size_bytes / row['wall_s'] / 2**20:7.0f} MiB/s")
    for name, ratio in ratios.items():
        print(f"{name:32} {ratio:6.2f}")
    result = {"machine": machine(), "clips": clips, "size_bytes": size_bytes, "timings": rows, "ratios": ratios}
    (RESULTS / "imports.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
