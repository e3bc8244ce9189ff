from django.apps import AppConfig


class FaultsConfig(AppConfig):
    """Has the training queue run the trainer that trains nothing."""

    name = "tests.faults"

    def ready(self) -> None:
        from audioldm_site.jobs import queue
        from training_app.models import TrainingRun

        TrainingRun.apply_event = lambda self, event: None  # its checkpoints are no files
        queue.TASKS["training"] = "tests.faults.tasks.run_training"
