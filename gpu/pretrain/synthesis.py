"""Sounds made in code, each with the caption it deserves.

Real recordings with a free licence are mostly music; these add the sounds that people ask a sound studio for. They imitate:
the rain here is filtered noise with drops. Every function draws its own loudness curve, pitch and pace from `rng`, names
the ones a listener would name, and returns at most `duration_s` seconds at SAMPLE_RATE_HZ with its caption.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

SAMPLE_RATE_HZ = 22_050
Sound = tuple[np.ndarray, str]
Rng = np.random.Generator


def synthesise(rng: Rng, duration_s: float) -> tuple[np.ndarray, str, str]:
    """One sound of a kind drawn evenly from KINDS: (samples, caption, kind)."""
    kind = list(KINDS)[int(rng.integers(len(KINDS)))]
    samples, caption = KINDS[kind](rng, duration_s)
    return samples.astype(np.float32), caption, kind


# Tones --------------------------------------------------------------------------------------------------------------


def tone(rng: Rng, duration_s: float) -> Sound:
    register, low_hz, high_hz = _one(rng, [("low", 80, 200), ("middle", 250, 700), ("high", 1200, 4000)])
    frequency_hz = rng.uniform(low_hz, high_hz)
    shape = _one(rng, ["sine", "square", "sawtooth"])
    t = _time(duration_s * rng.uniform(0.5, 1))
    samples = _fade(_wave(shape, np.full_like(t, frequency_hz)))
    return samples, _one(
        rng, [f"a {register} {shape} tone", f"a steady {register} {shape} wave", f"a {register} pitched {shape} tone holding"]
    )


def beeps(rng: Rng, duration_s: float) -> Sound:
    register, frequency_hz = _one(rng, [("low", rng.uniform(250, 500)), ("high", rng.uniform(1500, 3500))])
    pace, gap_s = _one(rng, [("fast", rng.uniform(0.1, 0.16)), ("slow", rng.uniform(0.45, 0.65))])
    samples = _silence(duration_s)
    length_s = min(gap_s * 0.5, 0.15)
    for start_s in np.arange(0.02, duration_s - length_s, gap_s):
        _add(samples, start_s, _fade(_wave("sine", np.full(_n(length_s), frequency_hz)), 0.005))
    return samples, _one(
        rng, [f"{pace} {register} electronic beeps", f"a {pace} {register} beeping sound", f"a machine beeping {_adverb(pace)}"]
    )


def sweep(rng: Rng, duration_s: float) -> Sound:
    word, (start_hz, end_hz) = _one(rng, [("rising", (200, 3500)), ("falling", (3500, 200))])
    length_s = duration_s * rng.uniform(0.5, 1)
    samples = _fade(_wave(_one(rng, ["sine", "sawtooth"]), _glide(start_hz, end_hz, length_s)))
    return samples, _one(rng, [f"a {word} tone sweep", f"a synth sweep {word} in pitch", f"an electronic {word} sweep"])


def siren(rng: Rng, duration_s: float) -> Sound:
    t = _time(duration_s)
    kind = _one(rng, ["police", "fire", "air raid"])
    if kind == "police":
        frequency = 900 + 400 * np.sin(2 * np.pi * rng.uniform(2.5, 4) * t)
    elif kind == "fire":
        frequency = np.where((t * rng.uniform(1.5, 2.2)) % 1 < 0.5, 480, 640).astype(float)
    else:
        frequency = 350 + 250 * np.sin(2 * np.pi * 0.3 * t - 1)
    caption = {"police": "a police siren wailing", "fire": "a two tone ambulance siren", "air raid": "an air raid siren rising slowly"}[
        kind
    ]
    return _fade(_wave("square", frequency) * 0.6 + _wave("sine", frequency)), _one(rng, [caption, caption, "an emergency siren"])


def alarm(rng: Rng, duration_s: float) -> Sound:
    t = _time(duration_s)
    pace_hz = rng.uniform(3, 6)
    samples = _wave("square", np.full_like(t, rng.uniform(700, 1400))) * ((t * pace_hz) % 1 < 0.6)
    return samples, _one(rng, ["an alarm clock buzzing", "a loud warning alarm", "an alarm going off"])


def laser(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    several = rng.random() < 0.5
    for start_s in np.arange(0, duration_s - 0.3, rng.uniform(0.3, 0.5)) if several else [0.05]:
        length_s = rng.uniform(0.15, 0.3)
        shot = _wave("sawtooth", _glide(rng.uniform(2500, 4500), rng.uniform(150, 300), length_s))
        _add(samples, start_s, shot * _decay(length_s, 0.12))
    return samples, _one(rng, ["laser gun shots"] if several else ["a laser shot", "a science fiction laser zap"])


# Struck and plucked -------------------------------------------------------------------------------------------------


def bell(rng: Rng, duration_s: float) -> Sound:
    word, base_hz, ring_s = _one(rng, [("small", rng.uniform(1400, 2200), 0.5), ("large church", rng.uniform(180, 320), 1.5)])
    samples = _silence(duration_s)
    strikes = int(rng.integers(1, 4))
    for i in range(strikes):
        _add(
            samples,
            0.02 + i * rng.uniform(0.6, 0.9),
            _partials(base_hz, [0.5, 1, 1.19, 1.56, 2, 2.51, 2.66, 3.01, 4.1], ring_s, duration_s),
        )
    return samples, f"a {word} bell ringing" if strikes > 1 else _one(rng, [f"a {word} bell struck once", f"a {word} bell"])


def glass(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    _add(samples, 0.02, _noise(rng, 0.15, 2500, 9000) * _decay(0.15, 0.04) * 3)
    for _ in range(int(rng.integers(25, 50))):
        start_s = 0.02 + rng.exponential(0.18)
        shard = _partials(rng.uniform(2000, 7000), [1, 1.43, 2.1], rng.uniform(0.03, 0.12), 0.3)
        _add(samples, start_s, shard * rng.uniform(0.1, 0.7))
    return samples, _one(rng, ["glass breaking", "a window shattering", "a glass smashing on the floor"])


def pluck(rng: Rng, duration_s: float) -> Sound:
    word, frequency_hz = _one(rng, [("low", rng.uniform(80, 140)), ("high", rng.uniform(400, 800))])
    period = int(SAMPLE_RATE_HZ / frequency_hz)
    burst = np.zeros(_n(duration_s))
    burst[:period] = rng.uniform(-1, 1, period)
    loop = np.zeros(period + 2)
    loop[0], loop[period], loop[period + 1] = 1, -0.498, -0.498
    return lfilter([1], loop, burst), _one(rng, [f"a {word} plucked string", f"plucking a {word} string"])


def knocking(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    start_s, gap_s, in_a_row = 0.1, rng.uniform(0.14, 0.26), int(rng.integers(2, 5))
    for i in range(40):
        if start_s > duration_s - 0.15:
            break
        knock = 2 * _noise(rng, 0.2, 100, 600) * _decay(0.2, 0.025)
        _add(knock, 0, 0.8 * _noise(rng, 0.02, 800, 5000) * _decay(0.02, 0.002))
        _add(samples, start_s, knock * rng.uniform(0.7, 1))
        start_s += gap_s * rng.uniform(0.9, 1.1) + (rng.uniform(0.5, 0.7) if (i + 1) % in_a_row == 0 else 0)
    samples = _hum_of_the_room(rng, _room(rng, samples, wet=0.1, ring_s=0.12), level_db=-50)
    return samples, _one(rng, ["someone knocking at the door", "knocking on a wooden door", "a knock at the door"])


def footsteps(rng: Rng, duration_s: float) -> Sound:
    ground, band = _one(rng, [("gravel", (1200, 6000)), ("wood", (120, 700)), ("concrete", (500, 2500))])
    pace, gap_s = _one(rng, [("walking", rng.uniform(0.5, 0.6)), ("running", rng.uniform(0.27, 0.33))])
    samples = _silence(duration_s)
    for start_s in np.arange(0.05, duration_s - 0.2, gap_s):
        _add(
            samples,
            start_s + rng.normal(0, 0.01),
            _noise(rng, 0.2, *band) * _decay(0.2, 0.03 if ground != "gravel" else 0.06) * rng.uniform(0.7, 1),
        )
        if ground == "wood":
            _add(samples, start_s, _thump(rng, 110, 0.04))
    return samples, _one(rng, [f"footsteps {pace} on {ground}", f"someone {pace} on {ground}", f"footsteps on {ground}"])


def clock(rng: Rng, duration_s: float) -> Sound:
    pace, gap_s = _one(rng, [("slow", 0.5), ("fast", 0.22)])
    samples = _silence(duration_s)
    for i, start_s in enumerate(np.arange(0.05, duration_s - 0.07, gap_s)):
        tick = 3 * _noise(rng, 0.05, 1500 if i % 2 else 2200, 9500) * _decay(0.05, 0.0015)
        tick += 0.3 * _noise(rng, 0.05, 300, 900) * _decay(0.05, 0.008)
        _add(samples, start_s, tick)
        _add(samples, start_s + 0.018, 0.35 * tick)
    samples = _hum_of_the_room(rng, _room(rng, samples, wet=0.3, ring_s=0.04), level_db=rng.uniform(-42, -30))
    return samples, _one(rng, [f"a {pace} ticking clock", "a clock ticking", f"a watch ticking {_adverb(pace)}"])


def clicks(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    single = rng.random() < 0.4
    starts = [0.05] if single else np.sort(rng.uniform(0, duration_s - 0.1, rng.integers(4, 14)))
    for start_s in starts:
        _add(samples, start_s, _noise(rng, 0.03, 1500, 8000) * _decay(0.03, 0.004))
    return samples, _one(
        rng,
        ["a single mouse click", "a button click"] if single else ["typing on a keyboard", "keyboard keys clicking", "a few sharp clicks"],
    )


def kick(rng: Rng, duration_s: float) -> Sound:
    hit = _wave("sine", _glide(rng.uniform(120, 200), rng.uniform(40, 55), 0.4)) * _decay(0.4, 0.12)
    return _beat(rng, duration_s, hit, ("a bass drum hit", "a kick drum beat"))


def snare(rng: Rng, duration_s: float) -> Sound:
    hit = _noise(rng, 0.25, 800, 8000) * _decay(0.25, 0.07) + 0.7 * _pad(_thump(rng, 190, 0.05), 0.25)
    return _beat(rng, duration_s, hit, ("a snare drum hit", "a snare drum beat"))


def hi_hat(rng: Rng, duration_s: float) -> Sound:
    word, ring_s = _one(rng, [("a closed", 0.035), ("an open", 0.22)])
    t = _time(0.6)
    metal = sum(np.sign(np.sin(2 * np.pi * hz * t)) for hz in np.array([205, 304, 369, 522, 635, 800]) * rng.uniform(1.6, 2.4))
    hit = 0.23 * _band(metal, 6500, 10_500) + 0.8 * _noise(rng, 0.6, 6500, 10_800)
    hit *= np.exp(-t / ring_s) + 0.25 * np.exp(-t / 0.008)
    return _beat(rng, duration_s, hit, (f"{word} hi-hat hit", f"{word} hi-hat pattern"))


def heartbeat(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    for start_s in np.arange(0.05, duration_s - 0.4, rng.uniform(0.7, 0.95)):
        _add(samples, start_s, _thump(rng, 55, 0.06))
        _add(samples, start_s + 0.25, _thump(rng, 65, 0.05) * 0.7)
    return samples, _one(rng, ["a heartbeat", "a heart beating", "a slow heartbeat thumping"])


# Noise --------------------------------------------------------------------------------------------------------------


def static(rng: Rng, duration_s: float) -> Sound:
    colour, band = _one(rng, [("white", (30, 10_900)), ("low", (30, 400)), ("high", (4000, 10_900))])
    samples = _fade(_noise(rng, duration_s * rng.uniform(0.5, 1), *band))
    return samples, {
        "white": _one(rng, ["white noise", "radio static", "steady static noise"]),
        "low": "low rumbling noise",
        "high": "high hissing noise",
    }[colour]


def rain(rng: Rng, duration_s: float) -> Sound:
    word, bed, drops = _one(rng, [("heavy", 1.0, 250), ("light", 0.35, 120)])
    samples = _rain(rng, duration_s, bed=bed, drops_per_s=drops)
    return samples, _one(
        rng,
        [f"{word} rain falling", f"{word} rain", "rain falling on a roof", "steady rain"]
        if word == "heavy"
        else ["light rain falling", "light rain", "rain drops pattering"],
    )


def wind(rng: Rng, duration_s: float) -> Sound:
    t = _time(duration_s)
    gusts = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.3, 0.8) * t + rng.uniform(0, 6))
    samples = _noise(rng, duration_s, 80, 450) + gusts * _noise(rng, duration_s, 350, rng.uniform(700, 1100))
    return samples * (0.3 + gusts), _one(rng, ["wind blowing", "strong wind howling", "gusts of wind"])


def waves(rng: Rng, duration_s: float) -> Sound:
    t = _time(duration_s)
    swell = np.sin(np.pi * t / duration_s) ** 2 + 0.1
    return _noise(rng, duration_s, 150, 5000) * swell, _one(rng, ["an ocean wave breaking", "waves on a beach", "the sea washing ashore"])


def stream(rng: Rng, duration_s: float) -> Sound:
    samples = 0.5 * _noise(rng, duration_s, 600, 6000) * (1 + 0.25 * _smooth_noise(rng, duration_s))
    for _ in range(int(220 * duration_s)):
        start_hz, length_s = rng.uniform(500, 3500), rng.uniform(0.008, 0.03)
        gurgle = _wave("sine", _glide(start_hz, start_hz * rng.uniform(1.05, 1.4), length_s))
        _add(samples, rng.uniform(0, duration_s), gurgle * np.sin(np.pi * np.linspace(0, 1, len(gurgle))) * rng.exponential(0.35))
    return samples, _one(rng, ["water running in a stream", "a flowing stream", "water pouring"])


def drips(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    for start_s in np.arange(0.05, duration_s - 0.2, rng.uniform(0.4, 0.9)):
        _add(samples, start_s, _bubble(rng, rng.uniform(900, 1800)))
    return samples, _one(rng, ["water dripping", "drops of water falling into a pool", "a dripping tap"])


def fire(rng: Rng, duration_s: float) -> Sound:
    samples = 0.12 * _noise(rng, duration_s, 60, 600)
    for _ in range(int(35 * duration_s)):
        _add(samples, rng.uniform(0, duration_s), _noise(rng, 0.03, 1000, 8000) * _decay(0.03, 0.003) * rng.exponential(0.6))
    return samples, _one(rng, ["a fire crackling", "a campfire burning", "crackling flames"])


def thunder(rng: Rng, duration_s: float) -> Sound:
    """Swells of low rumble over rain, now and then with a crack: without the rain it is an explosion to most ears."""
    swells = np.zeros(_n(duration_s))
    for _ in range(9):
        length_s = rng.uniform(0.6, 1.6)
        t = _time(length_s)
        rise, fall = np.minimum(1, t / 0.1), (1 - t / length_s) ** 1.5
        _add(swells, rng.uniform(0, duration_s * 0.6), rise * fall * rng.uniform(0.3, 1))
    white = rng.standard_normal(_n(duration_s))
    rumble = (6 * _low_pass(white, rng.uniform(80, 130)) + 1.2 * _low_pass(white, 350)) * swells
    rain = _rain(rng, duration_s, bed=0.6, drops_per_s=180)
    samples = rumble + rain / rain.std() * rumble.std() * rng.uniform(0.05, 0.15)
    if rng.random() < 0.5:
        crack = _noise(rng, 0.8, 150, 4000) * _decay(0.8, 0.18) * (1 + 0.8 * _smooth_noise(rng, 0.8))
        _add(samples, 0.05, crack * rumble.std() * 3)
        return samples, _one(rng, ["a clap of thunder", "a thunder strike", "thunder cracking"])
    return samples, _one(rng, ["thunder rumbling", "a rumble of thunder", "a thunderstorm"])


def explosion(rng: Rng, duration_s: float) -> Sound:
    word, ring_s = _one(rng, [("small", 0.2), ("large", 0.7)])
    samples = _noise(rng, duration_s, 30, 900) * _decay(duration_s, ring_s)
    _add(samples, 0, _noise(rng, 0.4, 200, 7000) * _decay(0.4, 0.06))
    return np.tanh(2 * samples), _one(rng, [f"a {word} explosion", f"a {word} bomb exploding"])


def gunshot(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    shots = _one(rng, [1, 1, 6])
    for i in range(shots):
        _add(samples, 0.02 + i * 0.12, np.tanh(4 * _noise(rng, 0.5, 100, 9000) * _decay(0.5, 0.035)) * (0.8 if i else 1))
    return samples, _one(rng, ["a gunshot", "a single gun shot"] if shots == 1 else ["a machine gun firing", "automatic gun fire"])


def whoosh(rng: Rng, duration_s: float) -> Sound:
    length_s = rng.uniform(0.4, 1.0)
    swell = np.sin(np.pi * np.linspace(0, 1, _n(length_s))) ** 2
    low_hz = rng.uniform(300, 900)
    return _noise(rng, length_s, low_hz, low_hz * 4) * swell, _one(
        rng, ["a whoosh", "a fast whoosh passing by", "a swoosh through the air"]
    )


def applause(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    for _ in range(int(120 * duration_s)):
        centre_hz = rng.uniform(800, 2200)
        _add(
            samples,
            rng.uniform(0, duration_s),
            _noise(rng, 0.04, centre_hz * 0.6, centre_hz * 2) * _decay(0.04, 0.008) * rng.uniform(0.3, 1),
        )
    return samples, _one(rng, ["applause", "a crowd clapping", "an audience applauding"])


def steam(rng: Rng, duration_s: float) -> Sound:
    length_s = duration_s * rng.uniform(0.4, 0.9)
    return _fade(_noise(rng, length_s, 3000, 9500), 0.15), _one(rng, ["steam hissing", "air escaping from a valve", "a hissing air leak"])


# Engines and creatures ----------------------------------------------------------------------------------------------


def helicopter(rng: Rng, duration_s: float) -> Sound:
    chop = (0.5 + 0.5 * np.cos(2 * np.pi * rng.uniform(10, 17) * _time(duration_s) + rng.uniform(0, 6))) ** 2
    depth = rng.uniform(0.5, 0.8)
    low = 1.5 * _noise(rng, duration_s, 40, 300) + 0.8 * _noise(rng, duration_s, 300, 1500)
    high = 0.15 * _noise(rng, duration_s, 1500, 7000)
    samples = low * (1 - depth + depth * chop) + high * (1 - depth / 2 + depth / 2 * chop)
    return samples, _one(rng, ["a helicopter flying", "helicopter blades spinning", "a helicopter"])


def jet(rng: Rng, duration_s: float) -> Sound:
    t = _time(duration_s)
    swell = np.exp(-(((t - duration_s / 2) / (duration_s / 4)) ** 2))
    whine = 0.15 * _wave("sine", _glide(2600, 1900, duration_s))
    return (_noise(rng, duration_s, 80, 4000) + whine) * (swell + 0.05), _one(rng, ["a jet flying past", "an airplane flying overhead"])


def horn(rng: Rng, duration_s: float) -> Sound:
    word, base_hz = _one(rng, [("car", rng.uniform(380, 450)), ("train", rng.uniform(260, 320)), ("ship", rng.uniform(85, 120))])
    length_s = duration_s * (rng.uniform(0.25, 0.5) if word == "car" else rng.uniform(0.6, 0.95))
    chord = sum(_wave("sawtooth", np.full(_n(length_s), base_hz * ratio)) for ratio in ((1, 1.26) if word != "ship" else (1, 1.01)))
    return _low_pass(_fade(chord, 0.04), 3500), _one(rng, [f"a {word} horn", f"a {word} horn blowing", f"a {word} horn honking once"])


def bird(rng: Rng, duration_s: float) -> Sound:
    samples = _silence(duration_s)
    base_hz = rng.uniform(2200, 4200)
    for start_s in np.arange(0.05, duration_s - 0.2, rng.uniform(0.14, 0.4)):
        length_s = rng.uniform(0.06, 0.13)
        chirp = _wave("sine", _glide(base_hz * rng.uniform(0.8, 1.3), base_hz * rng.uniform(0.8, 1.3), length_s))
        _add(samples, start_s, _fade(chirp, 0.015) * rng.uniform(0.5, 1))
    return samples, _one(rng, ["a bird chirping", "a bird singing", "birds tweeting"])


def crickets(rng: Rng, duration_s: float) -> Sound:
    t = _time(duration_s)
    pulse = (np.sin(2 * np.pi * rng.uniform(25, 35) * t) > 0) & ((t * rng.uniform(2, 3)) % 1 < 0.6)
    return np.sin(2 * np.pi * rng.uniform(3800, 5200) * t) * _low_pass(pulse.astype(float), 200), _one(
        rng, ["crickets chirping at night", "a cricket chirping", "crickets"]
    )


def cat(rng: Rng, duration_s: float) -> Sound:
    length_s = rng.uniform(0.6, 1.1)
    u = np.linspace(0, 1, _n(length_s))
    pitch = 480 + 300 * np.sin(np.pi * u) * rng.uniform(0.7, 1.2)
    meow = _wave("sawtooth", pitch)
    opened = _band(meow, 800, 2200) * np.sin(np.pi * u) + 0.4 * _low_pass(meow, 700)
    return opened * np.sin(np.pi * u) ** 0.5, _one(rng, ["a cat meowing", "a cat mewing"])


def whistle(rng: Rng, duration_s: float) -> Sound:
    length_s = duration_s * rng.uniform(0.3, 0.7)
    u = np.linspace(0, 1, _n(length_s))
    if rng.random() < 0.5:
        trill = 2800 + 150 * np.sin(2 * np.pi * 35 * u * length_s)
        return _fade(_wave("sine", trill) + 0.15 * _noise(rng, length_s, 2000, 6000), 0.02), "a referee whistle blowing"
    return _fade(_wave("sine", 1200 + 500 * np.sin(2 * np.pi * u)), 0.04), _one(rng, ["a person whistling", "a human whistle"])


KINDS: dict[str, Callable[[Rng, float], Sound]] = {
    make.__name__: make
    for make in (
        tone, beeps, sweep, siren, alarm, laser, bell, glass, pluck, knocking, footsteps, clock,
        clicks, kick, snare, hi_hat, heartbeat, static, rain, wind, waves, stream, drips, fire, thunder,
        explosion, gunshot, whoosh, applause, steam, helicopter, jet, horn, bird, crickets, cat, whistle,
    )
}  # fmt: skip


# Building blocks ----------------------------------------------------------------------------------------------------


def _one(rng: Rng, choices: list) -> object:
    return choices[int(rng.integers(len(choices)))]


def _n(duration_s: float) -> int:
    return max(int(duration_s * SAMPLE_RATE_HZ), 1)


def _time(duration_s: float) -> np.ndarray:
    return np.arange(_n(duration_s)) / SAMPLE_RATE_HZ


def _silence(duration_s: float) -> np.ndarray:
    return np.zeros(_n(duration_s))


def _glide(start_hz: float, end_hz: float, duration_s: float) -> np.ndarray:
    """A frequency that moves evenly in pitch."""
    return np.geomspace(start_hz, end_hz, _n(duration_s))


def _wave(shape: str, frequency_hz: np.ndarray) -> np.ndarray:
    phase = np.cumsum(frequency_hz) / SAMPLE_RATE_HZ
    if shape == "sine":
        return np.sin(2 * np.pi * phase)
    # Sums of sines, not steps: steps would fold frequencies above the band back into it.
    step = 2 if shape == "square" else 1
    highest_hz = 9000
    count = max(int(highest_hz / max(frequency_hz.max(), 1) / step), 1)
    harmonics = [1 + step * k for k in range(min(count, 40))]
    return sum(np.sin(2 * np.pi * k * phase) / k for k in harmonics)


def _noise(rng: Rng, duration_s: float, low_hz: float, high_hz: float) -> np.ndarray:
    return _band(rng.standard_normal(_n(duration_s)), low_hz, high_hz)


def _smooth_noise(rng: Rng, duration_s: float) -> np.ndarray:
    n = _n(duration_s)
    return np.interp(np.arange(n), np.linspace(0, n, 40), rng.standard_normal(40))


def _band(samples: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    high_hz = min(high_hz, SAMPLE_RATE_HZ / 2 * 0.98)
    return sosfilt(butter(2, [low_hz, high_hz], "band", fs=SAMPLE_RATE_HZ, output="sos"), samples)


def _low_pass(samples: np.ndarray, cutoff_hz: float) -> np.ndarray:
    return sosfilt(butter(2, cutoff_hz, "low", fs=SAMPLE_RATE_HZ, output="sos"), samples)


def _decay(duration_s: float, time_constant_s: float) -> np.ndarray:
    return np.exp(-_time(duration_s) / time_constant_s)


def _room(rng: Rng, samples: np.ndarray, *, wet: float, ring_s: float) -> np.ndarray:
    """With the echo of a small room: a dry click is a drum machine to most ears."""
    echo = _low_pass(rng.standard_normal(_n(ring_s * 4)), rng.uniform(2500, 5000)) * _decay(ring_s * 4, ring_s)
    return samples + wet * fftconvolve(samples, echo / np.sqrt((echo**2).sum()))[: len(samples)]


def _hum_of_the_room(rng: Rng, samples: np.ndarray, *, level_db: float) -> np.ndarray:
    """With the quiet noise that every recording has, so much below the peak."""
    white = rng.standard_normal(len(samples))
    noise = _low_pass(white, 1200) + 0.15 * white
    return samples + noise / noise.std() * np.abs(samples).max() * 10 ** (level_db / 20)


def _rain(rng: Rng, duration_s: float, *, bed: float, drops_per_s: float) -> np.ndarray:
    samples = bed * _noise(rng, duration_s, 800, 10_000)
    for _ in range(int(drops_per_s * duration_s)):
        drop = _noise(rng, 0.015, 1800, 9000) * _decay(0.015, 0.003)
        _add(samples, rng.uniform(0, duration_s), drop * min(rng.exponential(0.8), 2.5))
    return samples


def _partials(base_hz: float, ratios: list[float], ring_s: float, duration_s: float) -> np.ndarray:
    t = _time(min(duration_s, ring_s * 6))
    return sum(np.sin(2 * np.pi * base_hz * r * t) * np.exp(-t * r**0.5 / ring_s) / r**0.5 for r in ratios if base_hz * r < 10_000)


def _thump(rng: Rng, frequency_hz: float, time_constant_s: float) -> np.ndarray:
    length_s = time_constant_s * 5
    return _wave("sine", _glide(frequency_hz * 1.3, frequency_hz, length_s)) * _decay(length_s, time_constant_s)


def _bubble(rng: Rng, frequency_hz: float) -> np.ndarray:
    return _wave("sine", _glide(frequency_hz, frequency_hz * rng.uniform(1.3, 2), 0.06)) * _decay(0.06, 0.02)


def _fade(samples: np.ndarray, fade_s: float = 0.02) -> np.ndarray:
    n = min(_n(fade_s), len(samples) // 2)
    ramp = np.linspace(0, 1, n) if n else np.empty(0)
    faded = samples.copy()
    faded[:n] *= ramp
    faded[len(faded) - n :] *= ramp[::-1]
    return faded


def _pad(samples: np.ndarray, duration_s: float) -> np.ndarray:
    samples = samples[: _n(duration_s)]
    return np.pad(samples, (0, _n(duration_s) - len(samples)))


def _add(samples: np.ndarray, start_s: float, sound: np.ndarray) -> None:
    """Mix `sound` into `samples` from `start_s` on, as much of it as fits."""
    start = max(int(start_s * SAMPLE_RATE_HZ), 0)
    room = max(len(samples) - start, 0)
    samples[start : start + len(sound)] += sound[:room]


def _beat(rng: Rng, duration_s: float, hit: np.ndarray, captions: tuple[str, str]) -> Sound:
    samples = _silence(duration_s)
    if rng.random() < 0.5:
        _add(samples, 0.02, hit)
        return samples, captions[0]
    for start_s in np.arange(0.02, duration_s - 0.2, rng.uniform(0.25, 0.5)):
        _add(samples, start_s, hit)
    return samples, captions[1]


def _adverb(pace: str) -> str:
    return {"fast": "quickly", "slow": "slowly"}[pace]
