"""Routes: /v1 (the API), /oauth2 and /.well-known (the issuer), /problems, /admin, /metrics."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import include, path, re_path, register_converter

from hpts import health, metrics, oauth, openapi, problems
from hpts.views import only_get


class IdConverter:
    """A UUID in any case; anything else in its place is an unknown path."""

    regex = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"

    def to_python(self, value: str) -> str:
        return value.lower()

    def to_url(self, value: str) -> str:
        return value


class AccountCodeConverter(IdConverter):
    regex = "[0-9]{4}"


register_converter(IdConverter, "id")
register_converter(AccountCodeConverter, "account_code")


def home(request: HttpRequest) -> HttpResponse:
    only_get(request)
    return redirect("/v1/docs")


urlpatterns = [
    path("", home),
    path("v1/health/live", health.live),
    path("v1/health/ready", health.ready),
    path("v1/", include("ledger.urls")),
    path("v1/reconciliation/", include("reconciliation.urls")),
    path("v1/", include("webhooks.urls")),
    path("v1/openapi.json", openapi.document),
    path("v1/docs", openapi.docs),
    re_path(r"^problems/(?P<code>[a-z_]{1,64})$", problems.page),
    path("metrics", metrics.page),
    path("admin/", admin.site.urls),
    *oauth.urlpatterns,
]

handler400 = problems.bad_request
handler403 = problems.permission_denied
handler404 = problems.page_not_found
handler500 = problems.server_error
