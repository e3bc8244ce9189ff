"""A caption in the words of different people."""

from __future__ import annotations

import re

import numpy as np

ARTICLES = ("a ", "an ", "the ")
OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "a large dog barking": ("a big dog", "a hound barking"),
    "a small dog barking": ("a little dog yapping", "a puppy barking"),
    "a dog barking": ("a puppy", "dogs", "a dog woofing", "a hound"),
    "a cat meowing": ("a kitten", "a cat crying", "a kitten mewing"),
    "a bird chirping": ("a songbird", "birdsong", "a sparrow"),
    "birds tweeting": ("birds in the morning", "a bird twittering"),
    "a bird singing": ("a songbird singing", "birdsong"),
    "crickets": ("insects", "grasshoppers"),
    "at night": ("on a summer night", "in the evening"),
    "a police siren wailing": ("a police car", "police rushing past"),
    "an emergency siren": ("an emergency vehicle", "a siren"),
    "an ambulance siren": ("an ambulance", "an ambulance passing"),
    "a fire": ("flames", "a bonfire"),
    "a campfire burning": ("a fireplace", "burning logs", "wood burning"),
    "an alarm clock buzzing": ("an alarm", "a fire alarm", "a smoke alarm"),
    "an alarm going off": ("a detector going off", "a burglar alarm"),
    "a telephone ringing": ("a phone ringing", "a phone call", "somebody calling"),
    "an old phone ringing": ("an old telephone", "a telephone bell"),
    "a large church bell": ("a cathedral bell", "a tower bell", "a big bell"),
    "a small bell": ("a little bell", "a hand bell"),
    "clock ticking": ("clock", "clock going tick tock"),
    "a watch ticking": ("a wristwatch", "a pocket watch"),
    "rain falling": ("rainfall", "a downpour", "a shower of rain", "it is raining"),
    "rain falling on a roof": ("rain on a window", "raindrops on a roof"),
    "heavy rain": ("a downpour", "a rainstorm", "pouring rain"),
    "light rain": ("drizzle", "gentle rain"),
    "wind blowing": ("a storm blowing", "a breeze", "windy weather"),
    "strong wind howling": ("a gale", "a storm", "a howling storm"),
    "thunder": ("a thunderstorm", "lightning and thunder"),
    "a clap of thunder": ("lightning striking", "a lightning strike"),
    "an ocean wave breaking": ("the sea", "surf", "the surf breaking"),
    "waves on a beach": ("waves on the shore", "the coast", "surf on the coast"),
    "water dripping": ("a dripping faucet", "a leaking tap", "drops of water"),
    "a dripping tap": ("a leaking pipe", "a faucet dripping"),
    "water running in a stream": ("a brook", "a small river", "running water"),
    "bubbles rising in water": ("gurgling water", "something boiling"),
    "an explosion": ("a blast", "dynamite", "a detonation"),
    "explosion": ("blast", "detonation"),
    "a gunshot": ("a pistol", "a rifle shot", "a shot being fired"),
    "a machine gun firing": ("a machine gun", "rapid gunfire"),
    "glass breaking": ("a bottle breaking", "broken glass", "a glass smashed to pieces"),
    "a window shattering": ("a shattered window", "a smashed window"),
    "a car engine idling": ("a motor running", "a car waiting", "a motorcycle idling"),
    "an engine accelerating": ("a car speeding up", "a motorcycle", "a motor revving"),
    "a helicopter flying": ("a chopper", "a helicopter hovering"),
    "a jet flying past": ("a jet plane", "an aeroplane"),
    "a car horn": ("a driver honking", "a car honking"),
    "a train horn": ("a train passing", "a locomotive horn"),
    "a ship horn": ("a foghorn", "a ship in the harbour"),
    "applause": ("people clapping", "clapping hands"),
    "an audience applauding": ("an audience clapping after a show", "applause in a concert hall"),
    "knocking on a wooden door": ("somebody at the door", "a visitor knocking"),
    "footsteps walking": ("somebody walking", "steps"),
    "a heartbeat": ("a pulse", "a beating heart"),
    "steam hissing": ("a steam leak", "letting off steam", "a pressure valve"),
    "white noise": ("static", "noise"),
    "a laser shot": ("a ray gun", "an arcade game laser", "a blaster"),
    "a bass drum hit": ("a kick drum", "a deep drum hit", "a thud of a bass drum"),
    "a snare drum beat": ("a drummer", "a backbeat on a snare"),
    "an acoustic guitar": ("a guitar", "someone strumming a guitar"),
    "a grand piano": ("a piano", "someone at the piano"),
    "a church organ": ("an organ", "a pipe organ", "an organ in a church"),
    "a trumpet": ("trumpets", "a trumpet player"),
    "a violin": ("a fiddle", "a violinist"),
}
"""For a phrase of the captions, what else somebody might type. No sentence that a benchmark asks for stands here as a whole."""
_PHRASES = re.compile(r"\b(" + "|".join(sorted(map(re.escape, OTHER_WORDS), key=len, reverse=True)) + r")\b")


def reworded(caption: str, rng: np.random.Generator) -> str:
    """`caption`, one time in three in other words; with or without its article, capital and full stop."""
    if rng.random() < 0.35:
        caption = _PHRASES.sub(lambda found: _one(OTHER_WORDS[found[0]], rng), caption)
    if rng.random() < 0.3:
        caption = next((caption[len(a) :] for a in ARTICLES if caption.startswith(a)), caption)
    if rng.random() < 0.4:
        caption = caption[:1].upper() + caption[1:]
    return caption + "." if rng.random() < 0.1 else caption


def said_anew(caption: str, rng: np.random.Generator) -> str:
    """A caption that `reworded` made, reworded once more. What has been said in other words stays so."""
    plain = caption.removesuffix(".")
    if plain.startswith(("A ", "An ")) or plain[1:2].islower():  # not a note ("C major"), not an acronym
        plain = plain[:1].lower() + plain[1:]
    return reworded(plain, rng)


def _one(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
