"""Sounds are made in code, and expected numbers are computed by hand or come from the standard."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from gpu.errors import Fault
from gpu.sound import (
    Meter,
    inspect_sound,
    peaks,
    read_recipe,
    sound_flags,
    spectrogram_png,
    write_playable,
    write_wav,
)

SUBTYPES = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW")


def sine(*, pitch_hz: float = 440.0, rate_hz: int = 16_000, duration_s: float = 1.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * pitch_hz * np.arange(round(rate_hz * duration_s)) / rate_hz)


def saved(path: Path, samples: np.ndarray, rate_hz: int = 16_000, subtype: str = "PCM_16", format: str = "WAV") -> Path:
    soundfile.write(path, samples, rate_hz, subtype=subtype, format=format)
    return path


# What a file holds


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_every_sample_format_is_read(tmp_path, subtype, channels):
    facts = inspect_sound(saved(tmp_path / "a.wav", np.repeat(sine()[:, None], channels, axis=1), subtype=subtype))
    assert (facts.subtype, facts.channels, facts.frames, facts.duration_s) == (subtype, channels, 16_000, 1.0)
    assert facts.peak_dbfs == pytest.approx(-6.02, abs=0.3)
    assert facts.flags == []


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_full_scale_997_hz_reads_minus_3_01_lufs(tmp_path, rate_hz):
    facts = inspect_sound(saved(tmp_path / "a.wav", sine(pitch_hz=997, rate_hz=rate_hz, duration_s=3, level=1.0), rate_hz, "FLOAT"))
    # Defined at 48 kHz; the bilinear transform bends the shelf a little at other rates.
    assert facts.loudness_lufs == pytest.approx(-3.01, abs=0.01 if rate_hz == 48_000 else 0.05)


def test_k_weighting_equals_the_tables_of_the_standard():
    from gpu.sound import _k_weighting

    shelf, high_pass = _k_weighting(48_000)
    assert shelf == pytest.approx([1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585], abs=1e-7)
    assert high_pass == pytest.approx([1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621], abs=1e-7)


def test_stereo_is_three_decibels_louder_than_one_channel(tmp_path):
    tone = sine(pitch_hz=997, rate_hz=48_000, duration_s=2)
    one = inspect_sound(saved(tmp_path / "1.wav", tone, 48_000, "FLOAT")).loudness_lufs
    two = inspect_sound(saved(tmp_path / "2.wav", np.stack([tone, tone], axis=1), 48_000, "FLOAT")).loudness_lufs
    assert two - one == pytest.approx(3.01, abs=0.01)


def test_the_relative_gate_leaves_out_what_is_far_quieter(tmp_path):
    # EBU Tech 3341 case 3: 10 s at -36, 60 s at -23 and 10 s at -36 dBFS in stereo read -23 LUFS.
    parts = [sine(pitch_hz=1000, rate_hz=48_000, duration_s=duration_s, level=10 ** (dbfs / 20)) for duration_s, dbfs in ((10, -36), (60, -23), (10, -36))]
    tone = np.concatenate(parts)
    facts = inspect_sound(saved(tmp_path / "a.wav", np.stack([tone, tone], axis=1), 48_000, "FLOAT"))
    assert facts.loudness_lufs == pytest.approx(-23.0, abs=0.1)


def test_the_subwoofer_channel_does_not_count(tmp_path):
    samples = np.zeros((48_000, 6))
    samples[:, 3] = sine(pitch_hz=997, rate_hz=48_000)
    assert inspect_sound(saved(tmp_path / "a.wav", samples, 48_000, "FLOAT")).loudness_lufs is None


def test_a_sound_of_less_than_400_ms_has_no_loudness(tmp_path):
    assert inspect_sound(saved(tmp_path / "a.wav", sine(duration_s=0.39))).loudness_lufs is None
    assert inspect_sound(saved(tmp_path / "b.wav", sine(duration_s=0.41))).loudness_lufs is not None


def test_silence_has_no_peak_and_says_so(tmp_path):
    facts = inspect_sound(saved(tmp_path / "a.wav", np.zeros(16_000)))
    assert (facts.peak_dbfs, facts.loudness_lufs, facts.silence_share, facts.flags) == (None, None, 1.0, ["silent"])
    assert facts.peaks == [0] * 200


def test_half_a_second_of_silence_is_half_of_the_time(tmp_path):
    facts = inspect_sound(saved(tmp_path / "a.wav", np.concatenate([np.zeros(8_000), sine(duration_s=0.5)])))
    assert facts.silence_share == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
def test_clipping_is_runs_at_full_scale(tmp_path, subtype):
    loud = inspect_sound(saved(tmp_path / "a.wav", np.clip(sine(level=3.0), -1, 1), subtype=subtype))
    # |3 sin| exceeds 1 for all but arcsin(1/3) of each quarter: 1 - 2/pi * 0.3398 = 78 %.
    assert loud.clipped_share == pytest.approx(0.78, abs=0.01)
    assert loud.flags == ["clipped"]


def test_a_loud_wave_that_touches_full_scale_is_not_clipped(tmp_path):
    assert inspect_sound(saved(tmp_path / "a.wav", sine(level=1.0))).flags == []


def test_an_offset_is_reported_with_its_sign(tmp_path):
    facts = inspect_sound(saved(tmp_path / "a.wav", sine(level=0.2) - 0.25))
    assert facts.dc_offset == pytest.approx(-0.25, abs=1e-3)
    assert facts.flags == ["dc_offset"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_flagged_and_measured_as_zero(tmp_path, bad):
    samples = sine()
    samples[100] = bad
    facts = inspect_sound(saved(tmp_path / "a.wav", samples, subtype="FLOAT"))
    assert facts.flags == ["not_finite"]
    assert facts.peak_dbfs == pytest.approx(-6.02, abs=0.01)


def test_a_file_that_was_cut_off_says_so(tmp_path):
    whole = saved(tmp_path / "a.wav", sine()).read_bytes()
    (tmp_path / "b.wav").write_bytes(whole[: len(whole) // 2])
    facts = inspect_sound(tmp_path / "b.wav")
    assert facts.flags == ["truncated"]
    assert facts.duration_s == pytest.approx(0.5, abs=0.01)


def test_a_length_that_its_writer_did_not_know_is_not_truncation(tmp_path):
    content = bytearray(saved(tmp_path / "a.wav", sine()).read_bytes())
    struct.pack_into("<I", content, 40, 0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(content)
    assert "truncated" not in inspect_sound(tmp_path / "a.wav").flags


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "clip.empty"), (b"RIFF", "clip.unreadable"), (b"hello" * 100, "clip.unreadable"), (b"RIFF\x24\0\0\0WAVEfmt ", "clip.unreadable")],
)
def test_what_is_no_sound_is_refused_with_a_code(tmp_path, content, code):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(Fault) as caught:
        inspect_sound(tmp_path / "a.wav")
    assert caught.value.code == code
    assert "a.wav" in caught.value.message


def test_a_header_without_samples_is_empty(tmp_path):
    with pytest.raises(Fault) as caught:
        inspect_sound(saved(tmp_path / "a.wav", np.zeros(0)))
    assert caught.value.code == "clip.empty"


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path):
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(Fault) as caught:
            inspect_sound(path)
        assert caught.value.code == "clip.unreadable"


def test_the_name_does_not_decide(tmp_path):
    assert inspect_sound(saved(tmp_path / "a.RAW", sine())).format == "WAV"
    assert inspect_sound(saved(tmp_path / "a.wav", sine(), format="FLAC")).format == "FLAC"
    assert inspect_sound(saved(tmp_path / "ü\u0301 .wav", sine(), format="WAVEX")).format == "WAVEX"


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 300))
def test_no_bytes_bring_anything_but_a_fault(tmp_path_factory, noise, where):
    file = io.BytesIO()
    soundfile.write(file, sine(duration_s=0.02), 16_000, format="WAV")
    whole = file.getvalue()
    path = tmp_path_factory.mktemp("fuzz") / "a.wav"
    path.write_bytes(whole[:where] + noise + whole[where + len(noise) :])
    try:
        facts = inspect_sound(path)
    except Fault as fault:
        assert fault.code in ("clip.unreadable", "clip.empty")
    else:
        assert facts.frames > 0
        assert facts.peak_dbfs is None or np.isfinite(facts.peak_dbfs)


def test_two_hours_take_no_more_memory_than_a_minute(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_U8") as file:
        for _ in range(120):
            file.write(sine(rate_hz=8_000, duration_s=60))
    tracemalloc.start()
    facts = inspect_sound(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert facts.duration_s == 7200
    assert most < 30e6  # the samples alone would be 230 MB


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 4000), st.integers(1, 3)), elements=st.floats(-1.25, 1.25, width=32)),
    st.integers(1, 7),
)
def test_measuring_in_blocks_equals_measuring_at_once(samples, windows):
    def measured(length: int) -> Meter:
        meter = Meter(rate_hz=8_000, channels=samples.shape[1], frames=len(samples), full_scale=1.0)
        for start in range(0, len(samples), length):
            meter.add(samples[start : start + length])
        return meter

    at_once, in_blocks = measured(len(samples)), measured(windows * 80)
    assert in_blocks.peaks == at_once.peaks == peaks(samples)
    assert in_blocks.clipped_share == at_once.clipped_share
    assert in_blocks.silence_share == at_once.silence_share
    assert in_blocks.peak_dbfs == at_once.peak_dbfs
    assert in_blocks.dc_offset == pytest.approx(at_once.dc_offset, abs=1e-9)
    assert in_blocks.loudness_lufs == pytest.approx(at_once.loudness_lufs, abs=1e-9)


def test_a_run_of_clipping_across_blocks_is_counted_once():
    samples = np.zeros((400, 1), np.float32)
    samples[78:82] = 1.0
    meter = Meter(rate_hz=8_000, channels=1, frames=400, full_scale=1.0)
    for start in range(0, 400, 80):
        meter.add(samples[start : start + 80])
    assert meter.clipped_share == 4 / 400


# Peaks and flags of samples


def test_peaks_are_whole_numbers_over_equal_stretches():
    samples = np.concatenate([np.full(100, 0.1), np.full(100, -0.5), np.full(100, 1.7), np.zeros(100)])
    assert peaks(samples, count=4) == [10, 50, 100, 0]


def test_a_sound_shorter_than_the_drawing_has_one_bar_a_sample():
    assert peaks(np.array([0.5, -1.0, 0.0])) == [50, 100, 0]
    assert peaks(np.zeros(0)) == []


@pytest.mark.parametrize(
    ("samples", "flags"),
    [
        (np.zeros(16_000), ["silent"]),
        (np.zeros(0), ["silent"]),
        (sine(level=0.0005), ["silent"]),
        (sine(), []),
        (np.clip(sine(level=4), -1, 1), ["clipped"]),
        (sine(level=0.2) + 0.2, ["dc_offset"]),
        (np.random.default_rng(0).normal(scale=0.1, size=48_000), ["constant_noise"]),
        (np.random.default_rng(0).normal(scale=0.1, size=48_000) * np.linspace(1, 0.01, 48_000), []),
        (np.where(np.arange(16_000) == 5, np.nan, sine()), ["not_finite"]),
    ],
)
def test_flags_name_what_is_wrong(samples, flags):
    assert sound_flags(samples.astype(np.float32), 16_000) == flags


def test_a_wrong_shape_is_the_callers_mistake():
    with pytest.raises(ValueError, match="T, C"):
        sound_flags(np.zeros((2, 3, 4)), 16_000)


# Writing


def test_what_was_written_comes_back_in_every_reader(tmp_path):
    path, recipe = tmp_path / "a.wav", {"prompt": "Grüße, “rain” 雨", "seed": 7, "nested": {"list": [1, 2.5, None]}}
    write_wav(path, sine(), 16_000, recipe=recipe)
    samples, rate_hz = soundfile.read(path)
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16_000, 16_000)
    assert rate_hz == 16_000
    assert samples == pytest.approx(sine(), abs=1 / 32_000)
    assert read_recipe(path) == recipe
    assert soundfile.info(path).subtype == "PCM_16"
    with soundfile.SoundFile(path) as file:
        assert file.software == "AudioLDM studio"


def test_the_samples_start_at_byte_44(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([1.0, -1.0]), 16_000, recipe={})
    assert struct.unpack("<hh", (tmp_path / "a.wav").read_bytes()[44:48]) == (32_767, -32_767)


def test_the_same_sound_and_recipe_give_the_same_bytes(tmp_path):
    import hashlib

    first = write_wav(tmp_path / "a.wav", sine(), 16_000, recipe={"a": 1, "b": 2})
    second = write_wav(tmp_path / "b.wav", sine(), 16_000, recipe={"b": 2, "a": 1})
    assert first == second == hashlib.sha256((tmp_path / "a.wav").read_bytes()).hexdigest()
    assert write_wav(tmp_path / "c.wav", sine(), 16_000, recipe={"a": 2}) != first


def test_a_recipe_that_is_no_json_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        write_wav(tmp_path / "a.wav", sine(), 16_000, recipe={"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_wav(path, sine(), 16_000, recipe={"take": 1})
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_wav(path, sine(), 16_000, recipe={"take": 2})
    assert read_recipe(path) == {"take": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


@settings(max_examples=30, deadline=None)
@given(
    samples=arrays.arrays(np.int16, st.tuples(st.integers(0, 300), st.integers(1, 8))),
    recipe=st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none()), max_size=4),
)
def test_any_samples_and_any_recipe_survive(tmp_path_factory, samples, recipe):
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    write_wav(path, samples, 22_050, recipe=recipe)
    read, _ = soundfile.read(path, dtype="int16", always_2d=True)
    assert np.array_equal(read, samples)
    assert read_recipe(path) == recipe


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\xff\xff\xff\xffWAVELIST\xff\xff\xff\xffINFOICMT\xff\xff\xff\x7f{", b"\0" * 100, b"RIFF\0\0\0\0WAVE" + b"\0" * 50])
def test_foreign_and_broken_files_have_no_recipe(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    assert read_recipe(tmp_path / "a.wav") is None


def test_a_foreign_comment_is_no_recipe(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 8_000, 1) as file:
        file.comment = "recorded on a Tuesday"
        file.write(sine(rate_hz=8_000))
    assert read_recipe(tmp_path / "a.wav") is None
    assert read_recipe(tmp_path / "none.wav") is None


# Playing and drawing


@pytest.mark.parametrize(("subtype", "rate_hz", "channels"), [("ALAW", 8_000, 1), ("PCM_24", 96_000, 2), ("FLOAT", 192_000, 6), ("PCM_U8", 11_025, 1)])
def test_a_playable_rendition_is_plain_pcm(tmp_path, subtype, rate_hz, channels):
    samples = np.repeat(sine(rate_hz=rate_hz, duration_s=0.5)[:, None], channels, axis=1)
    write_playable(saved(tmp_path / "a.wav", samples, rate_hz, subtype), tmp_path / "b.wav")
    facts = inspect_sound(tmp_path / "b.wav")
    assert (facts.subtype, facts.channels, facts.sample_rate_hz) == ("PCM_16", min(channels, 2), min(rate_hz, 48_000))
    assert facts.duration_s == pytest.approx(0.5, abs=0.001)
    assert facts.peak_dbfs == pytest.approx(-6.02, abs=0.3)


def test_a_spectrogram_shows_a_tone_as_a_bright_line(tmp_path):
    path = saved(tmp_path / "a.wav", sine(pitch_hz=1_000, duration_s=2))
    image = Image.open(io.BytesIO(spectrogram_png(path, width=120, height=64)))
    assert (image.format, image.size) == ("PNG", (120, 64))
    rows = np.asarray(image.convert("L"), dtype=float).mean(axis=1)
    # 1000 Hz is 1000 mel; the top, 8000 Hz, is 2840.
    assert 63 - np.argmax(rows) == pytest.approx(64 * 1000 / 2840, abs=1.5)
    assert rows[:20].max() < 20


@pytest.mark.parametrize("frames", [1, 100, 5_000])
def test_short_and_silent_sounds_have_a_picture_too(tmp_path, frames):
    image = Image.open(io.BytesIO(spectrogram_png(saved(tmp_path / "a.wav", np.zeros(frames)), width=50, height=20)))
    assert np.asarray(image.convert("L")).max() < 10


def test_a_picture_of_no_sound_is_a_fault(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(Fault):
        spectrogram_png(tmp_path / "a.wav", width=10, height=10)


def test_measuring_sounds_needs_no_torch():
    code = "import sys, gpu.sound; assert not {'torch', 'django', 'scipy.signal'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
