from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "audioldm_site"

    def ready(self) -> None:
        from audioldm_site import checks  # noqa: F401  (registers them)
