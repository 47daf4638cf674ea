"""What production must be told before it serves: keys, hosts, servers. Development has defaults; production has none.

`manage.py check --deploy` says what is missing; the API, workers and the deliverer do not start without it. Whether the
database's role is fit is `hpts/walls.py`'s question.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ImproperlyConfigured

# Of compose and of settings.py: good for one's own machine.
KNOWN = "development"
KEY_LENGTH = 32


def faults() -> Iterator[str]:
    """What is missing or unfit, as sentences that name the variable and never its value."""
    if settings.DEVELOPMENT:
        return
    if len(settings.SECRET_KEY) < 50 or settings.SECRET_KEY.startswith(KNOWN):
        yield "HPTS_SECRET_KEY must be a secret of 50 characters or more: it signs page tokens and sessions."
    for name in ("DATABASE_URL", "REDIS_URL"):
        if not os.environ.get(name):
            yield f"{name} must name a server."
    if not settings.WEBHOOK_KEYS:
        yield "HPTS_WEBHOOK_KEYS must hold a key: secrets of webhook endpoints are not stored in the clear."
    elif any(len(key) < KEY_LENGTH or key.startswith(KNOWN) for key in settings.WEBHOOK_KEYS):
        yield f"Each key of HPTS_WEBHOOK_KEYS must be a secret of {KEY_LENGTH} characters or more."
    if settings.METRICS_TOKEN and (
        len(settings.METRICS_TOKEN) < KEY_LENGTH or settings.METRICS_TOKEN.startswith(KNOWN)
    ):
        yield f"HPTS_METRICS_TOKEN must be a secret of {KEY_LENGTH} characters or more, or absent."
    # Not at the top: this module is loaded before Django is set up.
    from hpts import oauth

    if settings.JWKS_URL:
        if not settings.JWKS_URL.startswith("https://"):
            yield "HPTS_JWKS_URL must be https: whoever can change the keys on their way can make tokens."
    else:
        try:
            oauth.signing_keys()
        except ImproperlyConfigured as error:
            yield f"{error}; or set HPTS_JWKS_URL to an external issuer's keys."
        if not settings.ISSUER.startswith("https://"):
            yield "HPTS_ISSUER must be this server's own https address."
    if "*" in settings.ALLOWED_HOSTS:
        yield "HPTS_ALLOWED_HOSTS must name the hosts."


def refuse_unfit() -> None:
    """End a process that is about to serve without what it needs."""
    found = list(faults())
    if found:
        sys.stderr.write("HPTS does not start:\n" + "".join(f"  {fault}\n" for fault in found))
        # Not an Exception, which Celery's signals swallow; 3 is what makes gunicorn stop instead of starting another worker.
        raise SystemExit(3)


@register(Tags.security, deploy=True)
def production_is_told(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    return [Error(fault, id="hpts.E002") for fault in faults()]
