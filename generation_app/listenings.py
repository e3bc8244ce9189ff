"""Everything that changes blind listening tests, and what hides the names until a listener is done.

A pair is two files that nothing tells apart but their sound. Which of them a listener knows as A and which as B, and in what order the
pairs come, follows from the session's secret, which never leaves the server.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone

from audioldm_site.jobs import queue
from audioldm_site.jobs.models import Status
from generation_app import evaluations
from generation_app.models import Listening, ListeningAnswer, ListeningSession, Preference
from gpu.config import ListenConfig, ListenJob
from gpu.errors import Fault
from gpu.evaluation.report import AGAINST, CHECKPOINT
from gpu.evaluation.statistics import binomial_p, wilson_interval
from gpu.events import FINISHED, Event
from training_app import storage
from training_app.models import Checkpoint

SIDES = ("a", "b")
PAIRS = "pairs"


def create_listening(
    *, owner, checkpoint: Checkpoint, against: Checkpoint, values: Mapping[str, Any], name: str = "", enqueue: bool = True
) -> Listening:
    """Freeze a test and put the making of its sounds in line.

    Raises:
        ConfigError: wrong values, by name.
        Fault: a checkpoint cannot be used, or both are the same.
    """
    for used in (checkpoint, against):
        evaluations.require_playable(used)
    if against.pk == checkpoint.pk:
        raise Fault("evaluation.same_checkpoint", f"{checkpoint.name} would be compared with itself")
    config = ListenConfig.parse({**ListenConfig.known(storage.recommended(checkpoint)), **values})
    listening = Listening(
        owner=owner,
        name=name.strip()[:120] or f"Blind test of {timezone.now():%-d %b %Y, %H:%M}",
        checkpoint=checkpoint,
        against=against,
        pair_count=len(config.prompts),
        config=config.to_dict(),
    )
    job = ListenJob(config=config, subjects=[evaluations.subject(CHECKPOINT, checkpoint), evaluations.subject(AGAINST, against)])
    listening.folder.mkdir(parents=True)
    try:
        job.write(listening.folder)
        with transaction.atomic():
            listening.full_clean()
            listening.save()
            if enqueue:
                queue.enqueue(listening)
    except BaseException:
        shutil.rmtree(listening.folder, ignore_errors=True)
        raise
    return listening


def session_of(listening: Listening, listener) -> ListeningSession:
    """The listener's own; begun at the first call."""
    return ListeningSession.objects.get_or_create(listening=listening, listener=listener)[0]


def pair_order(session: ListeningSession) -> list[int]:
    """The pairs as this listener meets them."""
    return sorted(range(session.listening.pair_count), key=lambda pair: _draw(session, "order", pair))


def next_pair(session: ListeningSession) -> int | None:
    """The first one that has no answer yet; None when all have, or the listener is done."""
    if session.finished_at:
        return None
    answered = set(session.answers.values_list("pair", flat=True))
    return next((pair for pair in pair_order(session) if pair not in answered), None)


def is_swapped(session: ListeningSession, pair: int) -> bool:
    """Whether A is the other checkpoint in this pair."""
    return _draw(session, "side", pair)[0] % 2 == 1


def sound_file(session: ListeningSession, pair: int, side: str) -> Path:
    """The file that this listener hears as `side` (`a` or `b`) of a pair."""
    subject = SIDES.index(side) ^ is_swapped(session, pair)
    return session.listening.folder / PAIRS / f"{pair:04d}-{subject}.wav"


def answer(session: ListeningSession, *, pair: int, choice: str) -> bool:
    """Keep what a listener chose (`a`, `b` or `neither`); the last answer ends the session. False when the pair has one already.

    Raises:
        Fault: `listening.invalid`, no such pair or choice; `listening.not_ready`, there are no sounds yet.
    """
    if session.listening.status != Status.SUCCEEDED:
        raise Fault("listening.not_ready", f"the sounds of {session.listening.name} are not ready")
    if not 0 <= pair < session.listening.pair_count or choice not in (*SIDES, Preference.NEITHER):
        raise Fault("listening.invalid", f"pair {pair}, choice {choice!r}: there are pairs 0 to {session.listening.pair_count - 1} and a, b, neither")
    with transaction.atomic():
        # Held, so that of two answers at once the second finds the first.
        session = ListeningSession.objects.select_for_update().select_related("listening").get(pk=session.pk)
        if session.finished_at:
            return False
        _, created = ListeningAnswer.objects.get_or_create(
            session=session, pair=pair, defaults={"preference": _preference(session, pair, choice)}
        )
        if next_pair(session) is None:
            finish(session)
    return created


def finish(session: ListeningSession) -> None:
    """End a session, complete or not: its answers count from now on, no more are taken, and the names may be known."""
    ListeningSession.objects.filter(pk=session.pk, finished_at=None).update(finished_at=timezone.now())
    session.refresh_from_db(fields=["finished_at"])


def apply_event(listening: Listening, event: Event) -> None:
    """What an event means for the row. Runs inside the transaction that records the event."""
    if event.type == FINISHED:
        Listening.objects.filter(pk=listening.pk).update(elapsed_s=event.data.get("elapsed_s"))


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counted answers. A win rate leaves out those without a preference; it is None while there is no other."""

    wins: int
    losses: int
    neither: int

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def answers(self) -> int:
        return self.decided + self.neither

    @property
    def win_rate(self) -> float | None:
        return self.wins / self.decided if self.decided else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson_interval(self.wins, self.decided) if self.decided else None

    @property
    def p(self) -> float:
        return binomial_p(self.wins, self.decided)

    @property
    def verdict(self) -> str:
        """`checkpoint` or `against` where a difference is beyond chance at the 5 % level, else ""."""
        if not self.decided or self.p >= 0.05:
            return ""
        return CHECKPOINT if self.wins > self.losses else AGAINST


def tally(answers) -> Tally:
    """Of answers in any order."""
    preferences = [item.preference for item in answers]
    return Tally(
        wins=preferences.count(Preference.CHECKPOINT), losses=preferences.count(Preference.AGAINST), neither=preferences.count(Preference.NEITHER)
    )


def _preference(session: ListeningSession, pair: int, choice: str) -> str:
    if choice == Preference.NEITHER:
        return Preference.NEITHER
    return (Preference.CHECKPOINT, Preference.AGAINST)[SIDES.index(choice) ^ is_swapped(session, pair)]


def _draw(session: ListeningSession, purpose: str, pair: int) -> bytes:
    return hashlib.sha256(f"{session.secret}/{purpose}/{pair}".encode()).digest()
