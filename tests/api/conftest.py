from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from audioldm_site.accounts import tokens
from audioldm_site.accounts.models import ApiToken
from audioldm_site.api import auth
from generation_app import services as generations
from generation_app.models import Generation
from training_app import services as training
from training_app.models import Checkpoint, TrainingRun

ROOT = "/api/v1/"


class Caller:
    """A program with a token: `api("post", "runs", {...})` gives status, content and headers."""

    def __init__(self, text: str) -> None:
        self.client = Client(enforce_csrf_checks=True, headers={"Authorization": f"Bearer {text}"} if text else {})

    def __call__(self, method: str, address: str, body: Any = None, /, **query: Any):
        address = address if address.startswith("/") else ROOT + address
        if body is not None:
            return getattr(self.client, method)(address, json.dumps(body), content_type="application/json", query_params=query)
        return self.client.generic(method.upper(), address, query_params=query)


@pytest.fixture(autouse=True)
def _fresh_rate(monkeypatch) -> None:
    monkeypatch.setattr(auth, "rate", auth.Rate())


@pytest.fixture
def caller_for() -> Callable:
    def make(user, *, scope: str = ApiToken.Scope.WRITE) -> Caller:
        return Caller(tokens.create_token(user=user, name="test", scope=scope)[1])

    return make


@pytest.fixture
def api(caller_for, alice) -> Caller:
    return caller_for(alice)


@pytest.fixture
def charlies_api(caller_for, charlie) -> Caller:
    return caller_for(charlie)


@pytest.fixture
def run(alice, dataset, checkpoint) -> TrainingRun:
    """Alice's run, waiting in line."""
    return training.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"max_train_steps": 4})


@pytest.fixture
def generation(alice, checkpoint) -> Generation:
    return generations.create_generation(owner=alice, checkpoint=checkpoint, values={"prompt": "a bell"})


@pytest.fixture
def run_checkpoint(run) -> Checkpoint:
    """What alice's run has saved: a few bytes in place of weights."""
    folder = run.folder / "checkpoints" / "global_step=000002"
    folder.mkdir(parents=True)
    (folder / "lora.safetensors").write_bytes(b"weights")
    return Checkpoint.objects.create(
        owner=run.owner, name="tones, step 2", family="audioldm2", format="run", origin="run", run=run, base=run.base_checkpoint, method="lora",
        global_step=2, path=folder.relative_to(run.folder.parent.parent).as_posix(), sha256="82e0e2e3f0a1b1a0d4d0d6b2b9b8c0a0" * 2,
    )  # fmt: skip


@pytest.fixture
def base_checkpoint(db) -> Checkpoint:
    return Checkpoint.objects.create(name="base", family="audioldm2", format="diffusers", origin="builtin", path="checkpoints/base")
