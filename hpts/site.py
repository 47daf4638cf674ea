"""The admin's site: one, made of pages that look at the books of one tenant, and of what is done besides looking.

The books have no ModelAdmin, so there is no add, change, delete or action to forbid: an app registers pages, panels of the
dashboard, searches and offers (links to what may be done) in its own admin.py, and each of them is a function that reads.
A page reads in one read-only snapshot of one tenant, as the role hpts_readonly; people, sessions and what is done go through
`default`. No query stands here and nothing is known of an app.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import wraps
from typing import Any, NamedTuple
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django.core.exceptions import PermissionDenied
from django.db import DataError, OperationalError
from django.db.backends.utils import CursorWrapper
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect, render
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from psycopg.errors import QueryCanceled
from unfold.sites import UnfoldAdminSite

from hpts.access import VIEW_BOOKS, Access, access_of, choose_tenant, needs_second_factor
from hpts.tenancy import SNAPSHOT, tenant_transaction

READS = "readonly"
# The menu's sections, in their order.
SECTIONS = ("", "Books", "Nights", "Traffic", "Access")
Context = Mapping[str, Any]


class Tenant(NamedTuple):
    """Whose books are looked at, and which date is today there."""

    tenant_id: str
    name: str
    currency: str
    timezone: str
    today: date


@dataclass(frozen=True, slots=True)
class Look:
    """One look at one tenant's books: what a page, a panel or a search reads with. `cursor` ends with the function."""

    request: HttpRequest
    access: Access
    tenant: Tenant
    cursor: CursorWrapper

    def asked(self, name: str) -> str:
        """A parameter of the URL without blanks around it; empty when there is none."""
        return self.request.GET.get(name, "").strip()


Show = Callable[..., Context | HttpResponse]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the books. `show(look, **arguments)` gives what its template says, or another answer; it raises Http404."""

    path: str
    name: str
    title: str
    template: str
    show: Show
    permission: str
    section: str
    icon: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of the dashboard, in order of `place`. `show(look)` gives what its template says."""

    place: int
    title: str
    template: str
    show: Callable[[Look], Context]
    width: str


@dataclass(frozen=True, slots=True)
class Part:
    """What another app knows of the thing that a page is about. `show(look, **arguments)` gives None when that is nothing."""

    title: str
    template: str
    show: Callable[..., Context | None]


class Found(NamedTuple):
    """What a search has found."""

    kind: str
    label: str
    url: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A link on a page to what may be done there, for who has the permission. It gets the page's arguments."""

    page: str
    label: str
    view: str
    permission: str
    icon: str


@dataclass(frozen=True, slots=True)
class Door:
    """A view that does something, or shows what is no book: behind the sign-in and a permission, GET and POST."""

    path: str
    name: str
    view: Callable[..., HttpResponse]
    title: str
    permission: str | None
    section: str
    icon: str
    platform: bool
    half_way: bool


@dataclass(slots=True)
class Registered:
    """What the apps have registered."""

    pages: dict[str, Page] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)
    searches: list[Callable[[Look, str], list[Found]]] = field(default_factory=list)
    offers: dict[str, list[Offer]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[str, list[Part]] = field(default_factory=lambda: defaultdict(list))
    doors: dict[str, Door] = field(default_factory=dict)
    # Called after a page has been shown or refused, with its name, arguments and status: what an audit writes down.
    witnesses: list[Callable[[HttpRequest, str, Mapping[str, Any], int], None]] = field(default_factory=list)


class Site(UnfoldAdminSite):  # type: ignore[misc]
    """The one admin site."""

    site_title = site_header = "HPTS"
    index_title = "Today"
    final_catch_all_view = False

    # Set by the app that keeps the tenants. `tenants(name=..., limit=...)` lists ids and names, in a transaction of its own;
    # `tenant(cursor)` is the one of the running transaction.
    tenants: Callable[..., list[tuple[str, str]]]
    tenant: Callable[[CursorWrapper], Tenant | None]

    def __init__(self) -> None:
        super().__init__("admin")
        self.registered = Registered()

    # --- What apps register ------------------------------------------------------------------------------------------

    def page(
        self,
        route: str,
        name: str,
        *,
        title: str,
        template: str,
        permission: str = VIEW_BOOKS,
        section: str = "",
        icon: str = "",
    ) -> Callable[[Show], Show]:
        """Register a page; with a section it stands in the menu."""

        def register(show: Show) -> Show:
            self.registered.pages[name] = Page(route, name, title, template, show, permission, section, icon)
            return show

        return register

    def panel(
        self, place: int, *, title: str, template: str, width: str = "half"
    ) -> Callable[[Callable[[Look], Context]], Callable[[Look], Context]]:
        """Register a part of the dashboard. `width`: third, half or whole."""

        def register(show: Callable[[Look], Context]) -> Callable[[Look], Context]:
            self.registered.panels.append(Panel(place, title, template, show, width))
            self.registered.panels.sort(key=lambda panel: panel.place)
            return show

        return register

    def part(
        self, page: str, *, title: str, template: str
    ) -> Callable[[Callable[..., Context | None]], Callable[..., Context | None]]:
        """Register what an app adds to another one's page."""

        def register(show: Callable[..., Context | None]) -> Callable[..., Context | None]:
            self.registered.parts[page].append(Part(title, template, show))
            return show

        return register

    def search(self, find: Callable[[Look, str], list[Found]]) -> Callable[[Look, str], list[Found]]:
        """Register a search: what has this exact id, reference, key or amount."""
        self.registered.searches.append(find)
        return find

    def offer(self, page: str, label: str, view: str, *, permission: str, icon: str = "") -> None:
        """Offer on a page to do something: a link to a door, which gets the page's arguments."""
        self.registered.offers[page].append(Offer(page, label, view, permission, icon))

    def door(
        self,
        route: str,
        name: str,
        *,
        title: str,
        permission: str | None,
        section: str = "",
        icon: str = "",
        platform: bool = False,
        half_way: bool = False,
    ) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
        """Register a view `(request, access, **arguments)`. `platform`: for platform staff alone; `half_way`: also for who has
        still to show a second factor."""

        def register(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
            self.registered.doors[name] = Door(route, name, view, title, permission, section, icon, platform, half_way)
            return view

        return register

    # --- Routes ------------------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """No more than is listed here: no Django's index of apps, no completion, no search of unfold's, and no ModelAdmin."""
        urls: list[URLPattern | URLResolver] = [
            path("", self.admin_view(self._dashboard), name="index"),
            path("login/", self.login, name="login"),
            path("logout/", self.admin_view(self.logout), name="logout"),
            path("password_change/", self.admin_view(self.password_change, cacheable=True), name="password_change"),
            path(
                "password_change/done/",
                self.admin_view(self.password_change_done, cacheable=True),
                name="password_change_done",
            ),
            path("find/", self._door(self._find), name="find"),
        ]
        for page in self.registered.pages.values():
            urls.append(path(page.path, self.admin_view(self._page(page)), name=page.name))
        for door in self.registered.doors.values():
            urls.append(path(door.path, self._door(door.view, door), name=door.name))
        return [*urls, path("<path:unknown>", self.admin_view(self._unknown))]

    # --- Who comes in ------------------------------------------------------------------------------------------------

    def has_permission(self, request: HttpRequest) -> bool:
        return super().has_permission(request) and not needs_second_factor(request)

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Callable[..., Any]:
        """Django's, with refusals as pages."""
        inner = super().admin_view(view, cacheable)

        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **arguments: Any) -> Any:
            if super(Site, self).has_permission(request) and needs_second_factor(request):
                return redirect(f"{reverse('admin:second_factor')}?{urlencode({'next': request.get_full_path()})}")
            return inner(request, *args, **arguments)

        return self._with_refusals(guarded)

    def _with_refusals(self, view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **arguments: Any) -> Any:
            try:
                return view(request, *args, **arguments)
            except Http404 as error:
                return self.refusal(request, 404, "Not found", str(error) or "There is no such thing in these books.")
            except PermissionDenied as error:
                return self.refusal(request, 403, "Not allowed", str(error) or "Your groups do not allow this.")

        return guarded

    def refusal(self, request: HttpRequest, status: int, title: str, detail: str) -> HttpResponse:
        """A page that says why there is nothing to see."""
        context = self.each_context(request) | {"title": title, "detail": detail, "status": status}
        return render(request, "books/refusal.html", context, status=status)

    def form(
        self, request: HttpRequest, form: Any, *, title: str, submit: str, back: str, intro: str = "", **more: object
    ) -> HttpResponse:
        """A page with one form that is posted to its own address."""
        context = {"title": title, "form": form, "submit": submit, "back": back, "intro": intro} | more
        context.setdefault("tenant", self.tenant_of(access_of(request)))
        status = 422 if form.is_bound else 200
        return render(request, "books/form.html", self.each_context(request) | context, status=status)

    def tenant_of(self, access: Access) -> Tenant | None:
        """Whose books somebody looks at, for the pages that do not read them: asked in a transaction of its own."""
        if access.tenant_id is None:
            return None
        with tenant_transaction(access.tenant_id, using=READS) as cursor:
            return self.tenant(cursor)

    def _unknown(self, request: HttpRequest, unknown: str) -> HttpResponse:
        raise Http404("There is no such page.")

    def _door(self, view: Callable[..., HttpResponse], door: Door | None = None) -> Callable[..., Any]:
        @wraps(view)
        def enter(request: HttpRequest, **arguments: Any) -> HttpResponse:
            access = access_of(request)
            try:
                if door is not None and door.permission is not None and not access.may(door.permission):
                    raise PermissionDenied
                if door is not None and door.platform and not access.is_platform:
                    raise PermissionDenied("Only platform staff may do this.")
                return view(request, access, **arguments)
            except PermissionDenied:
                # What a door does it writes down itself; that it stayed shut is known here.
                for witness in self.registered.witnesses:
                    witness(request, door.name if door is not None else view.__name__, arguments, 403)
                raise

        if door is not None and door.half_way:
            return self._half_way(enter)
        return self.admin_view(enter)

    def _half_way(self, view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        """For people whose password was right, whatever else is still asked of them."""

        @csrf_protect
        @never_cache
        def enter(request: HttpRequest, **arguments: Any) -> HttpResponse:
            if not super(Site, self).has_permission(request):
                return redirect("admin:login")
            return view(request, **arguments)

        return self._with_refusals(enter)

    # --- Looking -----------------------------------------------------------------------------------------------------

    def _page(self, page: Page) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, **arguments: Any) -> HttpResponse:
            status = 500
            try:
                response = self._shown(request, page, arguments)
                status = response.status_code
            except Http404:
                status = 404
                raise
            except PermissionDenied:
                status = 403
                raise
            finally:
                for witness in self.registered.witnesses:
                    witness(request, page.name, arguments, status)
            return response

        return view

    def _shown(self, request: HttpRequest, page: Page, arguments: Mapping[str, Any]) -> HttpResponse:
        access = access_of(request)
        if not access.may(page.permission):
            raise PermissionDenied

        def show(look: Look) -> Context | HttpResponse:
            shown = page.show(look, **arguments)
            if isinstance(shown, HttpResponse):
                return shown
            offers = [
                {
                    "label": offer.label,
                    "icon": offer.icon,
                    "url": reverse(f"admin:{offer.view}", kwargs=dict(arguments)),
                }
                for offer in self.registered.offers[page.name]
                if access.may(offer.permission)
            ]
            parts = []
            for part in self.registered.parts[page.name]:
                if (known := part.show(look, **arguments)) is not None:
                    parts.append({"title": part.title, "template": part.template, "shown": known})
            return {"title": page.title, "page": page, "offers": offers, "parts": parts, **shown}

        return self.looking(request, access, page.template, show)

    def looking(
        self,
        request: HttpRequest,
        access: Access,
        template: str,
        show: Callable[[Look], Context | HttpResponse],
    ) -> HttpResponse:
        """Call `show` with a look at the tenant's books and render what it gives, in the tenant's time zone."""
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        if access.tenant_id is None:
            return self._without_tenant(request, access)
        try:
            with tenant_transaction(access.tenant_id, first=SNAPSHOT, using=READS) as cursor:
                tenant = self.tenant(cursor)
                if tenant is None:
                    raise PermissionDenied("The tenant of your login does not exist.")
                shown = show(Look(request, access, tenant, cursor))
        except DataError:
            raise Http404("The address names nothing that can exist.") from None
        except OperationalError as error:
            if not isinstance(error.__cause__, QueryCanceled):
                raise
            detail = "The answer took too long. Ask for less: a shorter time, or a filter."
            return self.refusal(request, 503, "This takes too long", detail)
        if isinstance(shown, HttpResponse):
            return shown
        with timezone.override(ZoneInfo(tenant.timezone)):
            return render(request, template, self.each_context(request) | {"tenant": tenant} | dict(shown))

    def _without_tenant(self, request: HttpRequest, access: Access) -> HttpResponse:
        if not access.is_platform:
            raise PermissionDenied("Your login belongs to no tenant yet: ask a platform admin to bind it to one.")
        tenants = self.tenants(name="", limit=2)
        if len(tenants) == 1:
            choose_tenant(request, tenants[0][0])
            return redirect(request.get_full_path())
        return redirect(f"{reverse('admin:tenants')}?{urlencode({'next': request.get_full_path()})}")

    def _dashboard(self, request: HttpRequest) -> HttpResponse:
        access = access_of(request)
        if not access.may(VIEW_BOOKS):
            raise PermissionDenied("You are in no group yet: ask a platform admin to put you into one.")

        def show(look: Look) -> Context:
            panels = [
                {"title": panel.title, "template": panel.template, "width": panel.width, "shown": panel.show(look)}
                for panel in self.registered.panels
            ]
            return {"title": "Today", "panels": panels}

        return self.looking(request, access, "books/dashboard.html", show)

    def _find(self, request: HttpRequest, access: Access) -> HttpResponse:
        """The search box: goes where there is one thing to find, lists when there are more."""
        if not access.may(VIEW_BOOKS):
            raise PermissionDenied

        def show(look: Look) -> Context | HttpResponse:
            text = look.asked("q")
            found = [each for find in self.registered.searches for each in find(look, text)] if text else []
            if len(found) == 1:
                return redirect(found[0].url)
            return {"title": "Find", "text": text, "found": found}

        return self.looking(request, access, "books/find.html", show)

    # --- What every page has -----------------------------------------------------------------------------------------

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        context: dict[str, Any] = super().each_context(request)
        if self.has_permission(request):
            access = access_of(request)
            context |= {"access": access, "menu": self._menu(request, access)}
        return context

    def _menu(self, request: HttpRequest, access: Access) -> dict[str, list[dict[str, Any]]]:
        menu: dict[str, list[dict[str, Any]]] = defaultdict(list)

        def add(section: str, title: str, icon: str, url: str) -> None:
            current = request.path == url or (url != "/admin/" and request.path.startswith(url))
            menu[section].append({"title": title, "icon": icon, "url": url, "current": current})

        add("", "Today", "space_dashboard", reverse("admin:index"))
        for page in self.registered.pages.values():
            if page.section and access.may(page.permission):
                add(page.section, page.title, page.icon, reverse(f"admin:{page.name}"))
        for door in self.registered.doors.values():
            allowed = door.permission is None or access.may(door.permission)
            if door.section and allowed and (access.is_platform or not door.platform):
                add(door.section, door.title, door.icon, reverse(f"admin:{door.name}"))
        return {section: menu[section] for section in sorted(menu, key=SECTIONS.index)}


site = Site()
