"""Every operation asked for what the API's own description allows and forbids: no 500, no answer that is not described.

The long form is in docs/api.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis_settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from audioldm_site.accounts import tokens
from audioldm_site.accounts.models import ApiToken
from audioldm_site.api import auth
from audioldm_site.api.addresses import api
from audioldm_site.jobs.lifecycle import job_models
from datasets_app.models import Dataset
from generation_app.models import Generation
from training_app.models import TrainingRun

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 3


@pytest.fixture
def _kept_connection() -> Iterator[None]:
    """As Django's own test client: the test's transaction outlives a request."""
    for moment in (request_started, request_finished):
        moment.disconnect(close_old_connections)
    yield
    for moment in (request_started, request_finished):
        moment.connect(close_old_connections)


@pytest.mark.django_db
@pytest.mark.usefixtures("_kept_connection")
def test_every_operation_answers_as_it_is_described(settings, alice, dataset, base_checkpoint, monkeypatch):
    monkeypatch.setattr(auth, "rate", auth.Rate())
    settings.ENVIRONMENT = type(settings.ENVIRONMENT).read({"API_RATE_PER_MINUTE": "1000000"})
    settings.ALLOWED_HOSTS = ["*"]
    TrainingRun.objects.create(owner=alice, name="bells", dataset_name="bells", base_checkpoint=base_checkpoint, config={"max_train_steps": 10})
    Generation.objects.create(owner=alice, prompt="a bell", checkpoint=base_checkpoint, config={"prompt": "a bell"})
    ids = [str(pk) for model in (Dataset, type(base_checkpoint), *job_models()) for pk in model.objects.values_list("pk", flat=True)]
    _, token = tokens.create_token(user=alice, name="fuzz", scope=ApiToken.Scope.WRITE)
    schema = schemathesis.openapi.from_dict(api.get_openapi_schema())
    schema.app = get_wsgi_application()
    asked: dict[str, int] = {}
    real_ids = itertools.cycle([None, *ids])

    for found in schema.get_all_operations():
        operation = found.ok()
        @seed(20)
        @hypothesis_settings(max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case) -> None:
            # A made-up id is never there; every other kind of refusal lies behind a real one.
            if "pk" in case.path_parameters and (pk := next(real_ids)):
                case.path_parameters["pk"] = pk
            with transaction.atomic():
                response = case.call(headers={"Authorization": f"Bearer {token}"})
                transaction.set_rollback(True)
            asked[case.method] = asked.get(case.method, 0) + 1
            case.validate_response(response, checks=CHECKS)

        ask()

    assert asked.keys() == {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert sum(asked.values()) > 100
