"""Real sound effects out of a freely licensed soundfont, as a zip of recordings with its registry.

    python -m gpu.pretrain.soundfont FOLDER

General MIDI's last eight programs and Roland's GS banks hold recordings: rain, dogs, sirens, engines. Frank Wen's Fluid (R3) offers them
under the MIT licence. They are few, so each is rendered at several pitches, and short ones repeatedly at irregular moments, as one hears
them. Needs `fluidsynth` and both fonts (Debian: fluidsynth, fluid-soundfont-gm, fluid-soundfont-gs).
"""

from __future__ import annotations

import csv
import io
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

SAMPLE_RATE_HZ = 22_050
LENGTH_S, PAUSE_S = 4.0, 4.0
FONTS = (Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"), Path("/usr/share/sounds/sf2/FluidR3_GS.sf2"))
LICENCE, SOURCE, AUTHOR = "MIT", "fluid-soundfont-gm and fluid-soundfont-gs 3.1 rendered with fluidsynth", "Frank Wen, Toby Smithe"
TICKS_PER_SECOND = 960


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A preset of the fonts, the keys at which it still sounds like itself, and what a listener would call it.

    `gaps_s`: the shortest and longest pause between repetitions; None for a sound that goes on by itself.
    """

    bank: int
    program: int
    keys: range
    captions: tuple[str, ...]
    gaps_s: tuple[float, float] | None = None


SCENES = (
    Scene(bank=1, program=122, keys=range(48, 78, 2), captions=("rain falling", "heavy rain falling", "rain falling on a roof", "steady rain")),
    Scene(bank=1, program=123, keys=range(44, 54, 2), captions=("a large dog barking", "a dog barking", "a big dog barking"), gaps_s=(0.15, 0.6)),
    Scene(bank=1, program=123, keys=range(54, 62, 2), captions=("a dog barking", "a dog barking twice"), gaps_s=(0.15, 0.6)),
    Scene(bank=1, program=123, keys=range(62, 76, 2), captions=("a small dog barking", "a dog barking", "a little dog yapping"), gaps_s=(0.1, 0.4)),
    Scene(bank=0, program=124, keys=range(50, 74, 2), captions=("a telephone ringing", "an old phone ringing", "a ringing telephone")),
    Scene(bank=1, program=124, keys=range(54, 74, 2), captions=("a telephone ringing", "an electronic phone ringing"), gaps_s=(0.2, 0.7)),
    Scene(bank=1, program=125, keys=range(40, 64, 2), captions=("a car engine", "an engine running", "a car engine idling", "an engine accelerating")),
    Scene(bank=3, program=125, keys=range(44, 70, 2), captions=("a car passing by", "a car driving past")),
    Scene(bank=4, program=125, keys=range(44, 70, 2), captions=("a car crash", "a crash with breaking glass"), gaps_s=(0.8, 1.6)),
    Scene(bank=5, program=125, keys=range(46, 76, 2), captions=("a police siren wailing", "an emergency siren", "an ambulance siren")),
    Scene(bank=2, program=126, keys=range(48, 66, 3), captions=("a person screaming", "a scream"), gaps_s=(0.4, 0.9)),
    Scene(bank=1, program=126, keys=range(54, 66, 3), captions=("a person laughing", "laughter"), gaps_s=(0.2, 0.6)),
    Scene(bank=2, program=123, keys=range(48, 72, 3), captions=("a horse galloping", "the hooves of a horse")),
    Scene(bank=3, program=122, keys=range(44, 58, 2), captions=("wind blowing", "strong wind howling")),
    Scene(bank=0, program=123, keys=range(48, 76, 2), captions=("a bird chirping", "birds tweeting", "a bird singing"), gaps_s=(0.05, 0.4)),
    Scene(bank=3, program=123, keys=range(44, 68, 2), captions=("a bird chirping", "a bird calling", "a bird singing"), gaps_s=(0.1, 0.5)),
    Scene(bank=3, program=124, keys=range(44, 76, 3), captions=("a door slamming", "a door being slammed shut"), gaps_s=(0.7, 1.5)),
    Scene(bank=3, program=126, keys=range(48, 72, 3), captions=("a punch", "a slap"), gaps_s=(0.4, 1.0)),
    Scene(bank=5, program=122, keys=range(44, 76, 2), captions=("bubbles rising in water", "bubbling liquid", "water bubbling")),
    Scene(bank=5, program=124, keys=range(60, 84, 2), captions=("wind chimes", "chimes ringing in the wind")),
    Scene(bank=4, program=126, keys=range(48, 74, 2), captions=("a heartbeat", "a heart beating", "a slow heartbeat thumping"), gaps_s=(0.25, 0.5)),
    Scene(bank=0, program=122, keys=range(46, 76, 2), captions=("an ocean wave breaking", "waves on a beach", "waves at the seashore")),
    Scene(bank=0, program=126, keys=range(48, 76, 2), captions=("applause", "a crowd clapping", "an audience applauding")),
    Scene(bank=0, program=127, keys=range(46, 72, 2), captions=("a gunshot", "a gun being fired"), gaps_s=(0.5, 1.4)),
    Scene(bank=2, program=122, keys=range(30, 60, 3), captions=("an explosion", "a large explosion", "a rumbling explosion")),
)  # fmt: skip


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print(__doc__)
        return 2
    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    rows = write_recordings(folder / "effects.zip")
    with (folder / "effects.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} recordings in {folder / 'effects.zip'}")
    return 0


def write_recordings(path: Path) -> list[dict[str, str]]:
    """Render every scene at every key; the registry's rows.

    Raises:
        subprocess.CalledProcessError, FileNotFoundError: fluidsynth or a font is missing.
    """
    wanted = [(scene, key) for scene in SCENES for key in scene.keys]
    notes = render([(scene.bank, scene.program, key) for scene, key in wanted])
    rows = []
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, ((scene, key), note) in enumerate(zip(wanted, notes, strict=True)):
            samples = note if scene.gaps_s is None else repeated(note, scene.gaps_s, rng)
            name = f"audio/{scene.bank}_{scene.program}_{key}.flac"
            file = io.BytesIO()
            sf.write(file, samples[: int(LENGTH_S * SAMPLE_RATE_HZ)], SAMPLE_RATE_HZ, format="FLAC")
            archive.writestr(name, file.getvalue())
            rows.append({
                "audio": name, "caption": scene.captions[number % len(scene.captions)], "category": "effect", "licence": LICENCE,
                "source": SOURCE, "author": AUTHOR, "url": "", "in_demo": "0",
            })  # fmt: skip
    return rows


def repeated(note: np.ndarray, gaps_s: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """The sounding part of `note`, again and again, now louder, now softer, as long as LENGTH_S: [S]"""
    loud = np.flatnonzero(np.abs(note) > 0.02 * np.abs(note).max())
    once = note[loud[0] : loud[-1] + 1]
    samples = np.zeros(int(LENGTH_S * SAMPLE_RATE_HZ), dtype=np.float32)
    start = int(0.03 * SAMPLE_RATE_HZ)
    while start < len(samples):
        room = len(samples) - start
        samples[start : start + len(once)] += once[:room] * rng.uniform(0.7, 1)
        start += len(once) + int(rng.uniform(*gaps_s) * SAMPLE_RATE_HZ)
    return samples


def render(notes: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
    """Each (bank, program, key), held for LENGTH_S: mono samples at SAMPLE_RATE_HZ [S].

    All in one piece of music, because fluidsynth needs longer to read the fonts than to play.
    """
    with tempfile.TemporaryDirectory() as folder:
        midi, wave = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        midi.write_bytes(_midi(notes, velocity=110))
        command = ["fluidsynth", "-niq", "-g", "0.8", "-R", "0", "-C", "0", "-r", str(SAMPLE_RATE_HZ), "-o", "synth.midi-bank-select=gs"]
        subprocess.run([*command, "-F", str(wave), *map(str, FONTS), str(midi)], check=True, capture_output=True)
        samples, _ = sf.read(wave, dtype="float32", always_2d=True)
    every = int((LENGTH_S + PAUSE_S) * SAMPLE_RATE_HZ)
    return [samples[i * every : i * every + int(LENGTH_S * SAMPLE_RATE_HZ)].mean(1) for i in range(len(notes))]


def _midi(notes: Sequence[tuple[int, int, int]], *, velocity: int) -> bytes:
    """A Standard MIDI File of the notes one after another, each with a pause for its tail."""
    events = b""
    pause = 0
    for bank, program, key in notes:
        events += _variable(pause) + bytes([0xB0, 0, bank]) + b"\x00" + bytes([0xC0, program]) + b"\x00" + bytes([0x90, key, velocity])
        events += _variable(int(LENGTH_S * TICKS_PER_SECOND)) + bytes([0x80, key, 0])
        pause = int(PAUSE_S * TICKS_PER_SECOND)
    events += _variable(pause) + b"\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS_PER_SECOND // 2) + b"MTrk" + struct.pack(">I", len(events)) + events


def _variable(number: int) -> bytes:
    """MIDI's variable-length quantity."""
    out = [number & 127]
    while number := number >> 7:
        out.insert(0, number & 127 | 128)
    return bytes(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
