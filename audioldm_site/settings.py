"""Django settings. What an operator may change comes from `audioldm_site.environment`; everything else is decided here."""

from __future__ import annotations

import os
import secrets
import sys
import warnings
from pathlib import Path

from audioldm_site.environment import ROOT, Environment, database

ENVIRONMENT = Environment.read()
BASE_DIR = ROOT
DATA_DIR = ENVIRONMENT.data_dir
DATA_DIR.mkdir(parents=True, exist_ok=True)
MEDIA_FOLDERS = (
    "datasets", "checkpoints", "runs", "generations", "evaluations", "listenings", "conversions", "exports", "tokenizers", "incoming/datasets", "incoming/checkpoints",
    "cache", "uploads", "parts",
)  # fmt: skip
for _name in MEDIA_FOLDERS:
    (DATA_DIR / _name).mkdir(parents=True, exist_ok=True)

DEBUG = ENVIRONMENT.debug
BUILTINS = True


def _secret_key(path: Path) -> str:
    """The key in the environment, or one made once: queue payloads are signed with it, so every process must share it."""
    if ENVIRONMENT.secret_key:
        return ENVIRONMENT.secret_key
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        key = secrets.token_urlsafe(50)
        file.write(key)
    return key


SECRET_KEY = _secret_key(DATA_DIR / "secret_key")
ALLOWED_HOSTS = ENVIRONMENT.allowed_hosts
CSRF_TRUSTED_ORIGINS = ENVIRONMENT.trusted_origins
if ENVIRONMENT.behind_https_proxy:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
USE_X_FORWARDED_HOST = ENVIRONMENT.forwarded_host
SECURE_HSTS_SECONDS = ENVIRONMENT.hsts_seconds
SECURE_SSL_REDIRECT = ENVIRONMENT.https_redirect
# What watches over the site from inside asks without the proxy.
SECURE_REDIRECT_EXEMPT = [r"^health/", r"^metrics$"]
# A pod's address is a subdomain of somebody else's: neither all subdomains nor browsers' preload lists are ours to decide (W005, W021). The
# proxy that ends https answers plain http itself; one that does not say how it was called would be redirected for ever (W008).
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"] + (["security.W008"] if ENVIRONMENT.behind_https_proxy else [])
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True

INSTALLED_APPS = [
    "daphne",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "channels",
    # Before django_q, whose `qcluster` command it replaces.
    "audioldm_site",
    "audioldm_site.accounts",
    "audioldm_site.jobs",
    "audioldm_site.uploads",
    "django_q",
    "datasets_app",
    "training_app",
    "generation_app",
]

MIDDLEWARE = [
    "audioldm_site.logs.RequestId",
    "django.middleware.security.SecurityMiddleware",
    "audioldm_site.security.SecurityHeaders",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "audioldm_site.accounts.sharing.OwnersChange",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "audioldm_site.api.problems.ApiProblems",
]

ROOT_URLCONF = "audioldm_site.urls"
ASGI_APPLICATION = "audioldm_site.asgi.application"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": database(ENVIRONMENT.database_url, data_dir=DATA_DIR)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# django-q2 delivers; audioldm_site.jobs.cluster runs it. Which queue a process works on comes from Q_CLUSTER_NAME.
Q_CLUSTER = {
    "name": "studio",
    "orm": "default",
    "broker_class": "audioldm_site.jobs.broker.LeaseBroker",
    "workers": 1,
    "queue_limit": 1,
    "bulk": 1,
    # Never: a worker keeps its last pipeline warm.
    "recycle": 0,
    "timeout": None,
    "ack_failures": True,
    "poll": 0.2,
    "save_limit": 250,
    "scheduler": False,
    "label": "Queue",
    "ALT_CLUSTERS": {"training": {}, "generation": {}, "datasets": {}},
}
# It asks for a timeout shorter than its retry; the lease takes the place of both.
warnings.filterwarnings("ignore", message="Retry and timeout are misconfigured")

# Sockets read the database (audioldm_site.jobs.live), so that several web processes need no server between them.
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

AUTHENTICATION_BACKENDS = ["audioldm_site.accounts.backends.ThrottledBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

# On the volume that keeps the datasets: an upload is then moved, not copied.
FILE_UPLOAD_TEMP_DIR = DATA_DIR / "uploads"

STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "audioldm_site" / "static"]
WHITENOISE_USE_FINDERS = True

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"()": "audioldm_site.logs.Plain"}, "json": {"()": "audioldm_site.logs.Json"}},
    "filters": {"context": {"()": "audioldm_site.logs.Context"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": ENVIRONMENT.log_format, "filters": ["context"], "stream": sys.stderr}},
    "root": {"handlers": ["console"], "level": ENVIRONMENT.log_level},
    # They tell of every task and every endpoint; what matters of it is said by the site's own.
    "loggers": {name: {"level": "DEBUG" if ENVIRONMENT.log_level == "DEBUG" else "WARNING"} for name in ("django-q", "daphne")},
}
if os.environ.get("STUDIO_PROCESS"):
    # A process of `serve`: on a rented machine nobody sees its terminal.
    (DATA_DIR / "logs").mkdir(exist_ok=True)
    LOGGING["handlers"]["file"] = {
        "class": "audioldm_site.logs.SharedFile",
        "formatter": ENVIRONMENT.log_format,
        "filters": ["context"],
        "path": DATA_DIR / "logs" / f"{os.environ['STUDIO_PROCESS']}.log",
    }
    LOGGING["root"]["handlers"].append("file")
