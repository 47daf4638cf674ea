"""`manage.py deliver_webhooks`: the worker that relays entries to the feed and delivers them. Runs until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from django.core.management.base import BaseCommand

from hpts import walls
from webhooks.worker import Worker


class Command(BaseCommand):
    help = "Relay journal entries to the event feed and deliver them to webhook endpoints, until SIGTERM or Ctrl-C."

    def handle(self, *args: Any, **options: Any) -> None:
        walls.watch_role()
        asyncio.run(_serve())


async def _serve() -> None:
    worker = Worker()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, worker.stop)
    await worker.run()
