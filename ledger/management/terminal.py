"""What the commands share at the terminal: how a tenant is named, tables, progress bars. No command's own work is here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from django.core.management.base import CommandError
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from hpts import fields
from ledger.queries import tenant_is_active

T = TypeVar("T")


def known_tenant(text: str) -> str:
    """The id that a person typed, in its canonical form. CommandError when it is no id or no tenant has it."""
    try:
        tenant_id = str(fields.Uuid.parse(text))
    except fields.FieldError as error:
        raise CommandError(f"--tenant {text}: {error.message}") from None
    if not tenant_is_active(tenant_id):
        raise CommandError(f"There is no tenant {tenant_id}.")
    return tenant_id


def bar(items: Iterable[T], title: str, *, total: int, shown: bool = True) -> Iterable[T]:
    """The items, with a progress bar on the terminal while they are worked on. It never touches the standard output."""
    shown = shown and sys.stderr.isatty()
    return track(items, title, total=total, console=Console(stderr=True), disable=not shown, transient=True)


def progress(title: str, steps: Iterable[tuple[int, int]], *, shown: bool = True) -> None:
    """Follow (done, in all) on the terminal until the steps end. It never touches the standard output."""
    with followed(title, shown=shown) as told:
        for done, total in steps:
            told(done, total)


@contextmanager
def followed(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """As `progress()`, for work that tells of its steps itself: it is given what it calls with (done, in all)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (shown and sys.stderr.isatty()),
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def drawn(*parts: RenderableType) -> str:
    """Tables and text as the terminal shows them; wide and without colours where the output is a file or a pipe."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    return capture.get().rstrip("\n")
