"""Which checkpoint of a run is best: a suggestion with its reasons, and its doubts.

Three kinds of evidence, the most direct first: what listeners preferred blindly, how well sounds fit their prompts (CLAP score), and the
validation loss. Each may only rule out what it shows to be worse; what none can tell apart is a tie, and called one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from django.db.models import Q

from audioldm_site.jobs.models import Status
from generation_app.listenings import Tally, tally
from generation_app.models import Evaluation, Listening
from gpu.evaluation.report import AGAINST, CHECKPOINT
from training_app.models import Checkpoint, TrainingRun

LOSS_TIE = 0.01
"""Validation losses nearer than this share are called equal: another choice of held-out clips would move them as much."""
FEW_CLIPS = 20
SHARED_SETTINGS = ("prompts", "seed", "num_inference_steps", "sampler", "guidance_scale", "audio_length_in_s")


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """`checkpoint` is None where nothing was measured.

    Args:
        decided_by: `listening`, `clap` or `loss`: the last evidence that told it from another; "" where it is one of several equals.
        ties: those that nothing tells apart from it, by step.
    """

    checkpoint: Checkpoint | None
    reasons: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    ties: list[Checkpoint] = field(default_factory=list)
    decided_by: str = ""


def suggest(run: TrainingRun, *, checkpoints: Sequence[Checkpoint] | None = None, validation_clips: int | None = None) -> Suggestion | None:
    """None while the run has fewer than two checkpoints whose files are there.

    Args:
        checkpoints: of the run, where the caller has read them already.
        validation_clips: how many clips the validation loss rests on, where it is known.
    """
    rows = run.checkpoints.all() if checkpoints is None else checkpoints
    candidates = sorted((row for row in rows if not row.missing), key=lambda row: row.global_step or 0)
    evidence = _Evidence.about(run, candidates, validation_clips=validation_clips)
    if len(candidates) < 2:
        return None
    left, reasons, doubts, decided_by = candidates, [], [], ""
    for kind, ruling in (("listening", evidence.by_listening), ("clap", evidence.by_clap), ("loss", evidence.by_loss)):
        kept, said, doubted = ruling(left)
        if len(kept) < len(left):
            decided_by = kind
        left, reasons, doubts = kept, reasons + said, doubts + doubted
    if not evidence.any:
        return Suggestion(checkpoint=None, doubts=["Nothing has been measured yet: no clip is held out, and no checkpoint was evaluated or heard."])
    # Among equals the lowest loss, else the newest: some choice must be made, and it is said that it is one.
    best = min(left, key=lambda row: (evidence.loss(row) is None, evidence.loss(row) or 0.0, -(row.global_step or 0)))
    ties = [row for row in left if row.pk != best.pk]
    if ties:
        doubts.append(f"Nothing tells it apart from {_steps(ties)}; listen blindly to decide.")
    return Suggestion(checkpoint=best, reasons=reasons, doubts=doubts + evidence.doubts_about(best), ties=ties, decided_by=decided_by)


Ruling = tuple[list[Checkpoint], list[str], list[str]]


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """Everything that is known about a run's checkpoints, read in a fixed number of queries."""

    run: TrainingRun
    heard: dict[tuple[Any, Any], Tally]  # by (checkpoint, against)
    evaluations: list[Evaluation]
    validation_clips: int | None
    candidates: list[Checkpoint]

    @classmethod
    def about(cls, run: TrainingRun, candidates: list[Checkpoint], *, validation_clips: int | None) -> _Evidence:
        evaluations = Evaluation.objects.filter(status=Status.SUCCEEDED, checkpoint__run=run).order_by("-created_at")
        return cls(
            run=run,
            heard=_heard(run),
            evaluations=[row for row in evaluations if row.summary],
            validation_clips=validation_clips,
            candidates=candidates,
        )

    @property
    def any(self) -> bool:
        among = {row.pk for row in self.candidates}
        heard = any(tally.decided for pair, tally in self.heard.items() if set(pair) <= among)
        return heard or bool(self.evaluations) or any(self.loss(row) is not None for row in self.candidates)

    def loss(self, checkpoint: Checkpoint) -> float | None:
        """That of the weights one listens to."""
        return checkpoint.metrics.get("loss_ema", checkpoint.metrics.get("loss"))

    def by_listening(self, left: list[Checkpoint]) -> Ruling:
        lost, reasons, doubts = set(), [], []
        for first, second in combinations(left, 2):
            counted = self._between(first, second)
            if not counted.answers:
                continue
            verdict = {CHECKPOINT: (first, second), AGAINST: (second, first)}.get(counted.verdict)
            score = f"{max(counted.wins, counted.losses)} to {min(counted.wins, counted.losses)}, {counted.neither} without preference, p = {counted.p:.2g}"
            if verdict:
                lost.add(verdict[1].pk)
                reasons.append(f"Blind listeners preferred step {verdict[0].global_step} to step {verdict[1].global_step}: {score}.")
            else:
                doubts.append(f"Blind listening did not tell step {first.global_step} from step {second.global_step}: {score}.")
        kept = [row for row in left if row.pk not in lost]
        if not kept:
            return left, reasons, [*doubts, "The blind preferences contradict each other in a circle, so they were left out."]
        return kept, reasons, doubts

    def by_clap(self, left: list[Checkpoint]) -> Ruling:
        """Among evaluations of equal prompts, clips, ears and settings; worse is what the intervals leave no doubt about."""
        scored = self._comparable(left)
        if len(scored) < 2:
            return left, [], []
        best = max(scored, key=lambda pk: scored[pk]["value"])
        names = {row.pk: row for row in left}
        worse = {pk for pk in scored if pk != best and self._clearly_below(pk, best, scored)}
        told = f"CLAP score {scored[best]['value']:.3f} ({_interval(scored[best])}, N {scored[best]['n']})"
        if worse:
            return [row for row in left if row.pk not in worse], [f"Step {names[best].global_step} has the best {told}, clearly above {_steps([names[pk] for pk in worse])}."], []
        return left, [], [f"The CLAP scores of {len(scored)} checkpoints overlap; the highest is that of step {names[best].global_step}: {told}."]

    def by_loss(self, left: list[Checkpoint]) -> Ruling:
        known = {row.pk: loss for row in left if (loss := self.loss(row)) is not None}
        if not known:
            return left, [], []
        lowest = min(known.values())
        kept = [row for row in left if row.pk in known and known[row.pk] <= lowest * (1 + LOSS_TIE)]
        best = min(kept, key=lambda row: known[row.pk])
        reasons = [f"Step {best.global_step} has the lowest validation loss, {lowest:.4g}."]
        others = [known[row.pk] for row in left if row.pk in known and row not in kept]
        if others:
            reasons[0] = f"Step {best.global_step} has the lowest validation loss, {lowest:.4g}; the next is {100 * (min(others) / lowest - 1):.0f} % higher."
        unmeasured = [row for row in left if row.pk not in known]
        return kept, reasons, [f"{_steps(unmeasured)} was saved without a validation and not considered."] if unmeasured else []

    def doubts_about(self, best: Checkpoint) -> list[str]:
        """What speaks against a choice that won among its own kind."""
        doubts = []
        if self.validation_clips is not None and 0 < self.validation_clips < FEW_CLIPS:
            doubts.append(f"The validation loss rests on {self.validation_clips} held-out clips; with so few, small differences are chance.")
        base = self.run.base_checkpoint
        if base:
            counted = self._between(best, base)
            if counted.verdict == AGAINST:
                doubts.append(f"Blind listeners preferred {base.name}, which it was trained from: {counted.losses} to {counted.wins}, p = {counted.p:.2g}.")
        for row in self.evaluations:
            difference = row.summary.get("differences", {}).get("clap_score") or {}
            if row.checkpoint_id == best.pk and base and row.against_id == base.pk and (difference.get("high") or 0) < 0:
                doubts.append(f"{base.name}, which it was trained from, has the higher CLAP score: {difference['value']:+.3f} ({_interval(difference)}).")
                break
        return doubts

    def _between(self, first: Checkpoint, second: Checkpoint) -> Tally:
        one, other = self.heard.get((first.pk, second.pk), NOTHING), self.heard.get((second.pk, first.pk), NOTHING)
        return Tally(wins=one.wins + other.losses, losses=one.losses + other.wins, neither=one.neither + other.neither)

    def _comparable(self, left: list[Checkpoint]) -> dict[Any, dict[str, Any]]:
        """The CLAP scores of the group of like evaluations that holds most of the checkpoints, by checkpoint; the newest of each."""
        groups: dict[Any, dict[Any, dict[str, Any]]] = defaultdict(dict)
        ids = {row.pk for row in left}
        for row in self.evaluations:
            key = (row.summary.get("manifest_digest"), row.summary.get("embedding_sha256"), *(row.config.get(name) for name in SHARED_SETTINGS))
            for pk, whose in ((row.checkpoint_id, CHECKPOINT), (row.against_id, AGAINST)):
                figure = row.summary["subjects"].get(whose, {}).get("clap_score")
                if pk in ids and figure and figure.get("value") is not None:
                    groups[key].setdefault(pk, figure)
        return max(groups.values(), key=len, default={})

    def _clearly_below(self, pk: Any, best: Any, scored: dict[Any, dict[str, Any]]) -> bool:
        for row in self.evaluations:
            difference = row.summary.get("differences", {}).get("clap_score") or {}
            if (row.checkpoint_id, row.against_id) == (best, pk) and difference.get("low") is not None:
                return difference["low"] > 0
            if (row.checkpoint_id, row.against_id) == (pk, best) and difference.get("high") is not None:
                return difference["high"] < 0
        high, low = scored[pk].get("high"), scored[best].get("low")
        return high is not None and low is not None and high < low


NOTHING = Tally(wins=0, losses=0, neither=0)


def _heard(run: TrainingRun) -> dict[tuple[Any, Any], Tally]:
    """Answers of finished listeners, by the two checkpoints, over all tests that compare one of the run's."""
    answers: dict[tuple[Any, Any], list] = defaultdict(list)
    for listening in Listening.objects.filter(Q(checkpoint__run=run) | Q(against__run=run)).prefetch_related("sessions__answers"):
        for session in listening.sessions.all():
            if session.finished_at:
                answers[listening.checkpoint_id, listening.against_id] += list(session.answers.all())
    return {pair: tally(found) for pair, found in answers.items()}


def _steps(rows: list[Checkpoint]) -> str:
    return "step " + ", ".join(str(row.global_step) for row in sorted(rows, key=lambda row: row.global_step or 0))


def _interval(figure: dict[str, Any]) -> str:
    return "no interval" if figure.get("low") is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
