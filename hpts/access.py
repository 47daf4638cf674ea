"""Who of the staff may see whose books: the binding of a person to a tenant, the tenant that platform staff has chosen,
and the doors of the sign-in. What is shown is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django_otp import user_has_device

from hpts.models import Staff

CHOSEN_TENANT = "tenant_id"
# The groups that a migration makes; what each may do is told by their permissions.
GROUPS = ("viewer", "operator", "approver", "platform admin")
VIEW_BOOKS = "hpts.view_books"


@dataclass(frozen=True, slots=True)
class Access:
    """A person who has signed in. `tenant_id`: whose books are looked at; None when there are none, or none is chosen yet."""

    user: User
    tenant_id: str | None
    is_platform: bool

    def may(self, permission: str) -> bool:
        return self.user.has_perm(permission)

    @property
    def actor(self) -> str:
        """The person as the journal and the audit name them."""
        return f"staff:{self.user.get_username()}"


def access_of(request: HttpRequest) -> Access:
    """The binding decides; the session is asked only for platform staff."""
    user: Any = request.user
    staff: Staff | None = getattr(user, "staff", None)
    platform = staff.is_platform if staff is not None else user.is_superuser
    if platform:
        chosen = request.session.get(CHOSEN_TENANT)
        return Access(user, str(chosen) if chosen else None, True)
    return Access(user, str(staff.tenant_id) if staff is not None else None, False)


def choose_tenant(request: HttpRequest, tenant_id: str) -> None:
    """Platform staff turns to a tenant's books, for the rest of the session. Raises PermissionError for anybody else."""
    if not access_of(request).is_platform:
        raise PermissionError("Only platform staff may turn to another tenant.")
    request.session[CHOSEN_TENANT] = tenant_id


def needs_second_factor(request: HttpRequest) -> bool:
    """Whether this session has still to show a code."""
    user: Any = request.user
    return bool(settings.ADMIN_TWO_FACTOR and user.is_authenticated and not user.is_verified())


def has_second_factor(user: Any) -> bool:
    return bool(user_has_device(user))


class StaffBackend(ModelBackend):
    """Django's, which fetches the person's binding in the same statement. What a person may do is told by groups alone."""

    def get_all_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        return self.get_group_permissions(user_obj, obj)

    def get_user(self, user_id: Any) -> User | None:
        user = User.objects.select_related("staff").filter(pk=user_id).first()
        return user if user is not None and self.user_can_authenticate(user) else None


def locked_out(request: HttpRequest, *_: Any, **__: Any) -> HttpResponse:
    """The answer to a sign-in after too many failures."""
    context = {"title": "Too many failed sign-ins", "minutes": settings.AXES_COOLOFF_TIME.seconds // 60}
    return render(request, "books/locked_out.html", context, status=429)
