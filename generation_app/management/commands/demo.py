"""The main job without a browser: import, listen, fine-tune, listen again."""

import io
import shutil
from pathlib import Path

from django.conf import settings
from PIL import Image, ImageDraw, ImageFont

from audioldm_site.jobs import queue
from audioldm_site.jobs.models import Status
from audioldm_site.management.base import StudioCommand
from datasets_app import services as datasets
from datasets_app.models import Dataset, Origin
from generation_app import services as generations
from generation_app.management.commands import generate
from gpu.errors import Fault
from gpu.events import STARTED, VALIDATED
from gpu.sound import spectrogram_png
from training_app import services as training
from training_app.lookup import by_name_or_id
from training_app.management.commands import finetune
from training_app.models import Checkpoint, TrainingRun

PROMPT = "a steam locomotive whistle"
TILE_PX = (420, 260)


class Command(StudioCommand):
    help = "Import the demo dataset, fine-tune the starter for a short while, and make the same prompt before and after."

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--prompt", default=PROMPT)
        parser.add_argument("--steps", type=int, default=150, help="of fine-tuning (default: 150; at 300 the held-out loss has risen again)")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--out", type=Path, default=Path("demo_output"))

    def run(self, *, prompt, steps, seed, out, **options):
        dataset = demo_dataset()
        starter = by_name_or_id(Checkpoint.objects.usable(), "starter", what="checkpoint")
        out.mkdir(parents=True, exist_ok=True)
        sound = {"prompt": prompt, "seed": seed}

        self._say(f"1/4  “{prompt}” from the starter, before")
        before = self._sound(starter, sound, out / "before.wav")

        self._say(f"2/4  fine-tuning the starter on {dataset.name}, {steps} steps")
        run = training.create_run(
            owner=None,
            dataset=dataset,
            base_checkpoint=starter,
            name=f"demo, {steps} steps",
            values={"method": "full", "max_train_steps": steps, "learning_rate": 2e-4, "train_batch_size": 8, "validation_epochs": 1_000_000,
                    "validation_prompts": [prompt], "num_waveforms_per_prompt": 1, "checkpointing_steps": steps},
            enqueue=queue.workers_alive("training"),
        )  # fmt: skip
        finetune.perform(run, here=not queue.workers_alive("training"))
        run.refresh_from_db()
        if run.status != Status.SUCCEEDED:
            raise Fault(run.error_code or "run.stopped", run.error_detail or "the fine-tune was stopped")

        self._say(f"3/4  “{prompt}” after")
        tuned = run.checkpoints.order_by("-global_step").first()
        after = self._sound(tuned, sound, out / "after.wav")

        self._say("4/4  the picture")
        clip = dataset.clips.filter(caption__iexact=prompt).first()
        shown = [("before", out / "before.wav"), (f"after {steps} steps", out / "after.wav")]
        if clip:
            shutil.copyfile(clip.file, out / "real.wav")
            shown.append(("a real clip of that caption", out / "real.wav"))
        picture = out / "spectrograms.png"
        side_by_side(shown, title=f"“{prompt}”, seed {seed}").save(picture)
        return {
            "dataset": dataset.name,
            "run": str(run.pk),
            "checkpoint": tuned.name,
            "prompt": prompt,
            "before": str(out / "before.wav"),
            "after": str(out / "after.wav"),
            "picture": str(picture),
            "clap_score_before": before,
            "clap_score_after": after,
            **_validation_losses(run),
        }

    def describe(self, result) -> str:
        return "\n".join(
            [
                f"before:  {result['before']}  (CLAP score {_number(result['clap_score_before'])})",
                f"after:   {result['after']}  (CLAP score {_number(result['clap_score_after'])})",
                f"validation loss on {result['validation_clips']} held-out clips: {_number(result['validation_loss_before'])}"
                f" before, {_number(result['validation_loss_after'])} after (lower is better)",
                f"picture: {result['picture']}",
                f"The run is in the studio too: `make run`, then Training; its result is the checkpoint “{result['checkpoint']}”.",
            ]
        )

    def _say(self, line: str) -> None:
        self.stderr.write(self.style.MIGRATE_HEADING(line))

    def _sound(self, checkpoint: Checkpoint, values: dict, target: Path) -> float | None:
        generation = generations.create_generation(owner=None, checkpoint=checkpoint, values=values, enqueue=False)
        generate.perform(generation, here=True)
        best = generation.waveforms.first()
        shutil.copyfile(best.file, target)
        return best.clap_score


def demo_dataset() -> Dataset:
    """The demo dataset as `migrate` registered it, or imported now."""
    dataset = Dataset.objects.filter(name="demo").first()
    if dataset is None:
        source = settings.BASE_DIR / "datasets_app" / "builtin" / "demo.zip"
        dataset = datasets.import_inline(source=source, name="demo", origin=Origin.BUILTIN)
    return dataset


def side_by_side(shown: list[tuple[str, Path]], *, title: str) -> Image.Image:
    """Spectrograms in a row, each under its label."""
    width, height = TILE_PX
    margin, head = 16, 44
    picture = Image.new("RGB", (margin + (width + margin) * len(shown), head + 28 + height + margin), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, 12), title, fill="black", font=ImageFont.load_default(size=20))
    for column, (label, path) in enumerate(shown):
        left = margin + column * (width + margin)
        draw.text((left, head), label, fill="black", font=ImageFont.load_default(size=16))
        tile = Image.open(io.BytesIO(spectrogram_png(path, width=width, height=height)))
        picture.paste(tile.convert("RGB"), (left, head + 28))
    return picture


def _validation_losses(run: TrainingRun) -> dict:
    """The fixed-noise loss on the same held-out clips, before the first step and after the last."""
    losses = [event.data["loss"] for event in run.events.filter(type=VALIDATED).order_by("seq") if event.data.get("loss") is not None]
    started = run.events.filter(type=STARTED).first()
    return {
        "validation_clips": started.data["validation_clips"] if started else 0,
        "validation_loss_before": losses[0] if losses else None,
        "validation_loss_after": losses[-1] if losses else None,
    }


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"
