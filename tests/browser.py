"""A real browser and a real server for tests and screenshots: Chromium from the system, the application in a thread.

Nothing is downloaded: `apt-get install chromium` (or Chrome) brings the browser; HPTS_BROWSER names another one. A machine
that has none fails with that sentence, because a test that is skipped proves nothing.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from django.core.wsgi import get_wsgi_application
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


def executable(playwright: Any) -> str:
    """The browser's path."""
    chosen = os.environ.get("HPTS_BROWSER")
    found = chosen or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and Path(playwright.chromium.executable_path).exists():
        found = playwright.chromium.executable_path
    assert found, "No browser: apt-get install chromium, or set HPTS_BROWSER to the path of Chromium or Chrome."
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable(playwright), args=list(ARGUMENTS))
        try:
            yield launched
        finally:
            launched.close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def server() -> Iterator[str]:
    """The application on a free port of loopback; gives its origin."""
    application = get_wsgi_application()

    def closing(environ: dict[str, Any], start_response: Any) -> Any:
        # Each request has a thread of its own here, and so a connection that nobody else will use.
        from django.db import connections

        try:
            yield from application(environ, start_response)
        finally:
            connections.close_all()

    httpd = _Server(("127.0.0.1", 0), _Silent)
    httpd.set_app(closing)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join(10)
