"""The environment, read in one typed place. A wrong value ends the start with its name, the value and what is expected."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

ROOT = Path(__file__).resolve().parent.parent
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything that the operator can set.

    Args:
        data_dir: the one folder with all state.
        host, port: where the site listens.
        allowed_hosts: names by which the site may be asked for; `*` for any.
        trusted_origins: full origins (https://pod-8000.proxy.example) that forms may come from behind a proxy.
        behind_https_proxy: believe `X-Forwarded-Proto`, and let browsers send cookies over https alone.
        trusted_proxies: how many proxies stand before the site and append to `X-Forwarded-For`; 0 believes none.
        forwarded_host: believe `X-Forwarded-Host` too, for a proxy that puts its own name into `Host`.
        hsts_seconds: for how long browsers shall refuse plain http; 0 leaves that to the proxy.
        https_redirect: answer plain http with a redirect, where the proxy does not.
        metrics_token: opens /metrics for a monitor elsewhere; without it only this machine may look.
        api_rate_per_minute: requests that one API token, or one session, may send in a minute.
        upload_max_gb, upload_quota_gb: what one uploaded file, and all unfinished ones of one user, may have (10^9 bytes).
        upload_keep_hours: how long an upload waits for its next bytes before it is removed.
        log_format: `plain`, or `json` for one object a line.
        database_url: postgres://..., or "" for SQLite in data_dir.
        admin_user, admin_password: the first account, made at start when there is none.
        price_per_hour: what the machine costs, shown on runs; 0 hides it.
    """

    data_dir: Path
    host: str
    port: int
    debug: bool
    secret_key: str
    allowed_hosts: list[str]
    trusted_origins: list[str]
    behind_https_proxy: bool
    trusted_proxies: int
    forwarded_host: bool
    hsts_seconds: int
    https_redirect: bool
    metrics_token: str
    api_rate_per_minute: int
    upload_max_gb: float
    upload_quota_gb: float
    upload_keep_hours: float
    database_url: str
    admin_user: str
    admin_password: str
    price_per_hour: float
    log_level: str
    log_format: str

    @classmethod
    def read(cls, env: Mapping[str, str] = os.environ) -> Environment:
        host = env.get("HOST", "127.0.0.1")
        port = _integer(env, "PORT", 8000, minimum=1, maximum=65535)
        behind_https_proxy = _boolean(env, "BEHIND_HTTPS_PROXY", False)
        # RunPod tells a pod its name; its proxy's address follows from it.
        pod = [f"https://{env['RUNPOD_POD_ID']}-{port}.proxy.runpod.net"] if env.get("RUNPOD_POD_ID", "").isalnum() else []
        return cls(
            data_dir=Path(env.get("DATA_DIR") or ROOT / "data").expanduser().resolve(),
            host=host,
            port=port,
            debug=_boolean(env, "DEBUG", False),
            secret_key=env.get("SECRET_KEY", ""),
            # This machine may always ask: health checks do.
            allowed_hosts=[*_list(env, "ALLOWED_HOSTS", [] if host in LOCAL_HOSTS else ["*"]), "127.0.0.1", "localhost", "[::1]"],
            trusted_origins=_list(env, "CSRF_TRUSTED_ORIGINS", pod),
            behind_https_proxy=behind_https_proxy,
            trusted_proxies=_integer(env, "TRUSTED_PROXIES", 1 if behind_https_proxy else 0, minimum=0, maximum=10),
            forwarded_host=_boolean(env, "FORWARDED_HOST", False),
            hsts_seconds=_integer(env, "HSTS_SECONDS", 0, minimum=0, maximum=63_072_000),
            https_redirect=_boolean(env, "HTTPS_REDIRECT", False),
            metrics_token=env.get("METRICS_TOKEN", ""),
            api_rate_per_minute=_integer(env, "API_RATE_PER_MINUTE", 600, minimum=1, maximum=1_000_000),
            upload_max_gb=_number(env, "UPLOAD_MAX_GB", 64.0, minimum=0.0),
            upload_quota_gb=_number(env, "UPLOAD_QUOTA_GB", 128.0, minimum=0.0),
            upload_keep_hours=_number(env, "UPLOAD_KEEP_HOURS", 72.0, minimum=1.0),
            database_url=env.get("DATABASE_URL", ""),
            admin_user=env.get("ADMIN_USER", "admin"),
            admin_password=env.get("ADMIN_PASSWORD", ""),
            price_per_hour=_number(env, "PRICE_PER_HOUR", 0.0, minimum=0.0),
            log_level=_choice(env, "LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
            log_format=_choice(env, "LOG_FORMAT", "plain", ("plain", "json")),
        )


def database(url: str, *, data_dir: Path) -> dict:
    """Django's DATABASES entry for `postgres://user:password@host:port/name`, or SQLite in `data_dir` for ""."""
    if not url:
        # WAL and IMMEDIATE: 4 writers and 2 workers met no "database is locked" in 12 s; with the defaults 1629 times.
        # WAL needs shared memory between its processes, which a network file system does not give.
        journal = "TRUNCATE" if is_on_network(data_dir) else "WAL"
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": data_dir / "db.sqlite3",
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                "timeout": 30,
                "transaction_mode": "IMMEDIATE",
                "init_command": f"PRAGMA journal_mode={journal}; PRAGMA synchronous=NORMAL;",
            },
        }
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql") or not parts.path.strip("/"):
        raise ImproperlyConfigured(f"DATABASE_URL ({url!r}) must look like postgres://user:password@host:5432/name, or be empty for SQLite")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.strip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
    }


def filesystem(path: Path, *, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that holds a path, e.g. `ext4`; "" where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = {}
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if path.is_relative_to(point):
            found[len(point)] = kind
    return found[max(found)] if found else ""


def is_on_network(path: Path) -> bool:
    """Whether a path lies on a network file system, or one that a program provides (FUSE), as rented network volumes do."""
    kind = filesystem(path)
    return kind.startswith(("nfs", "cifs", "smb", "fuse", "9p", "ceph", "gluster", "lustre", "beegfs"))


def _integer(env: Mapping[str, str], name: str, default: int, *, minimum: int, maximum: int) -> int:
    text = env.get(name, "")
    try:
        value = int(text) if text else default
    except ValueError:
        raise ImproperlyConfigured(f"{name} ({text!r}) must be a whole number from {minimum} to {maximum}") from None
    if not minimum <= value <= maximum:
        raise ImproperlyConfigured(f"{name} ({value}) must be from {minimum} to {maximum}")
    return value


def _number(env: Mapping[str, str], name: str, default: float, *, minimum: float) -> float:
    text = env.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        raise ImproperlyConfigured(f"{name} ({text!r}) must be a number") from None
    if not value >= minimum:
        raise ImproperlyConfigured(f"{name} ({value}) must be at least {minimum}")
    return value


def _boolean(env: Mapping[str, str], name: str, default: bool) -> bool:
    text = env.get(name, "").strip().lower()
    if not text:
        return default
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ImproperlyConfigured(f"{name} ({text!r}) must be true or false")


def _choice(env: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = env.get(name, default)
    value = value.upper() if choices[0].isupper() else value.lower()
    if value not in choices:
        raise ImproperlyConfigured(f"{name} ({value!r}) must be one of {', '.join(choices)}")
    return value


def _list(env: Mapping[str, str], name: str, default: list[str]) -> list[str]:
    text = env.get(name, "")
    return [item.strip() for item in text.split(",") if item.strip()] if text else default
