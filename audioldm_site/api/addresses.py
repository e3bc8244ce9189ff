"""The API as Django addresses: its subjects, its OpenAPI description and its page of documentation."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.http import require_safe
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError

from audioldm_site.api import checkpoints, conversions, datasets, evaluations, generations, listenings, problems, runs, studio
from audioldm_site.api.auth import Session, Token

SUBJECTS = {
    "/datasets": datasets.router,
    "/runs": runs.router,
    "/checkpoints": checkpoints.router,
    "/conversions": conversions.router,
    "/generations": generations.router,
    "/evaluations": evaluations.router,
    "/listenings": listenings.router,
    "": studio.router,
}
"""One line for each subject."""

DESCRIPTION = """Everything that the pages do. Send `Authorization: Bearer …` with a token from your account's page.
Jobs are answered with 202 and `Location`; watch their `status`, or ask for their events after the last number you know. Every refusal is problem+json."""


class StudioAPI(NinjaAPI):
    @lru_cache(maxsize=1)  # noqa: B019  (there is one API, for the life of the process; building it takes a second)
    def get_openapi_schema(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As ninja makes it, with refusals as problem+json and where an accepted job is to be watched."""
        schema = super().get_openapi_schema(*args, **kwargs)
        for operations in schema["paths"].values():
            for operation in operations.values():
                for status, answer in operation["responses"].items():
                    if int(status) >= 400 and "content" in answer:
                        answer["content"] = {problems.CONTENT_TYPE: answer["content"].pop("application/json", {})}
                    if int(status) == 202:
                        answer["headers"] = {"Location": {"description": "Where to watch it.", "schema": {"type": "string"}}}
        return schema


api = StudioAPI(
    title="AudioLDM studio", version="1", description=DESCRIPTION, openapi_url=None, docs_url=None, auth=[Token(), Session()], urls_namespace="api"
)
for prefix, router in SUBJECTS.items():
    api.add_router(prefix, router)


@api.exception_handler(Exception)
def _of_exception(request: HttpRequest, error: Exception) -> HttpResponse:
    return problems.of_exception(error)


@api.exception_handler(ValidationError)
def _of_fields(request: HttpRequest, error: ValidationError) -> HttpResponse:
    """What did not fit the declared shape, by field: `parameters.seed`, `page`."""
    errors = {}
    for item in error.errors:
        place = [str(part) for part in item["loc"][1:] if part not in ("body", "wanted")]
        errors[".".join(place) or str(item["loc"][0])] = item["msg"]
    return problems.problem("config.invalid", "; ".join(f"{name}: {words}" for name, words in errors.items()), errors=errors)


@api.exception_handler(AuthenticationError)
def _of_stranger(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    return problems.problem("api.not_logged_in")


@api.exception_handler(HttpError)
def _of_http(request: HttpRequest, error: HttpError) -> HttpResponse:
    return problems.problem(problems.BY_STATUS.get(error.status_code, "api.unreadable"), str(error), status=error.status_code)


@api.get("/openapi.json", include_in_schema=False, url_name="openapi")
def openapi(request: HttpRequest) -> HttpResponse:
    """This description, for programs that write clients."""
    return JsonResponse(api.get_openapi_schema())


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """The same for people: plain HTML of our own, since the usual viewers need inline code or a CDN."""
    schema = api.get_openapi_schema()
    subjects: dict[str, list[dict[str, Any]]] = {}
    for address, operations in schema["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {})
            shown = {
                "method": method.upper(),
                "address": address,
                "summary": operation["summary"],
                "description": operation.get("description", ""),
                "parameters": operation["parameters"],
                "body": [_resolved(schema, content["schema"]) for content in body.values()],
                "success": next((status for status in operation["responses"] if int(status) < 400), 200),
            }
            subjects.setdefault(operation.get("tags", ["Studio"])[0], []).append(shown)
    return render(request, "api/docs.html", {"subjects": subjects, "root": request.build_absolute_uri(problems.ROOT)})


def _resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A body's fields by name, with what the page says of each."""
    if "$ref" in part:
        part = schema["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    required = part.get("required", [])
    fields = {name: {**_first_kind(field), **field} for name, field in part.get("properties", {}).items()}
    return {name: {**field, "needed": name in required, "words": field.get("description", "")} for name, field in fields.items()}


def _first_kind(field: dict[str, Any]) -> dict[str, Any]:
    """Of a field that may be null: what else it may be."""
    return next((kind for kind in field.get("anyOf", []) if kind.get("type") != "null"), {})


def _open(patterns: list) -> list:
    """The API asks for itself who it is, and answers in JSON: the site's redirect to the login page is not for it. HEAD works where GET does."""
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            _open(pattern.url_patterns)
        elif isinstance(pattern, URLPattern):
            pattern.callback = login_not_required(_with_head(pattern.callback))
    return patterns


def _with_head(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """ninja knows no HEAD: the answer to GET, its length and all, without the body."""

    @wraps(view)
    def answer(request: HttpRequest, *args: Any, **named: Any) -> HttpResponseBase:
        if request.method != "HEAD":
            return view(request, *args, **named)
        request.method = "GET"
        found = view(request, *args, **named)
        request.method = "HEAD"
        head = HttpResponse(status=found.status_code, headers=found.headers)
        if not found.streaming:
            head.headers["Content-Length"] = str(len(found.content))
        # Not close(): that ends the request. An open file of the answer is closed with this one.
        head._resource_closers.extend(found._resource_closers)
        return head

    return answer


urlpatterns = [path("docs", docs, name="api_docs"), path("", (_open(api.urls[0]), *api.urls[1:]))]
