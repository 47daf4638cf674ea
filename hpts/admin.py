"""The clients in the admin: to look at, to switch off, and who may read through them. `create_client` makes new ones."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from oauth2_provider.models import AccessToken, Grant, IDToken, RefreshToken

from hpts.models import ApiClient

# The toolkit's pages offer to write tokens and secrets by hand.
for model in (ApiClient, AccessToken, Grant, IDToken, RefreshToken):
    if admin.site.is_registered(model):
        admin.site.unregister(model)


@admin.register(ApiClient)
class ApiClientAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("client_id", "name", "tenant_id", "allowed_scopes", "created", "disabled_at")
    search_fields = ("=client_id", "=tenant_id")
    fields = (*list_display, "redirect_uris", "people")
    readonly_fields = (*list_display, "redirect_uris")
    filter_horizontal = ("people",)
    show_full_result_count = False
    actions = ("disable", "enable")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiClient | None = None) -> bool:
        return False

    @admin.action(description="Disable the selected clients (within a minute)", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[ApiClient]) -> None:
        queryset.filter(disabled_at=None).update(disabled_at=timezone.now())

    @admin.action(description="Enable the selected clients", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[ApiClient]) -> None:
        queryset.update(disabled_at=None)
