"""What webhooks are measured against: the usual design, a Celery task for each delivery that makes one POST.

The task does what it must: reads its delivery, signs, posts on a connection of its own, writes the result.

    celery --app benchmarks.one_post_per_task worker --pool prefork --concurrency 2
"""

from __future__ import annotations

import os
import time

import django
import requests
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")
django.setup()

from django.conf import settings  # noqa: E402

from hpts.tenancy import tenant_transaction  # noqa: E402
from webhooks import signing  # noqa: E402
from webhooks.delivery import Claimed  # noqa: E402

app = Celery("one_post_per_task")
app.conf.update(
    broker_url=settings.REDIS_URL,
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_default_queue="one_post_per_task",
)


@app.task  # type: ignore[untyped-decorator]
def deliver(tenant_id: str, delivery_id: str) -> None:
    with tenant_transaction(tenant_id) as cursor:
        cursor.execute(
            """SELECT d.id::text, d.lease_token, d.attempt, e.id::text, e.url, v.document, d.event_type, d.created_at,
                      false, e.secret
               FROM webhook_delivery d
               JOIN webhook_endpoint e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id
               JOIN webhook_event v ON v.tenant_id = d.tenant_id AND v.sequence = d.sequence
               WHERE d.tenant_id = %s AND d.id = %s""",
            (tenant_id, delivery_id),
        )
        *facts, secret = cursor.fetchone()
    claimed = Claimed(tenant_id, *facts, (bytes(secret),))
    body = claimed.body()
    headers = signing.headers(claimed.keys(), delivery_id, int(time.time()), body)
    answer = requests.post(
        claimed.url,
        data=body,
        headers=headers | {"Content-Type": "application/json"},
        timeout=20,
        allow_redirects=False,
    )
    with tenant_transaction(tenant_id) as cursor:
        cursor.execute(
            """UPDATE webhook_delivery SET state = 'succeeded', finished_at = now(), status_code = %s, attempt = attempt + 1
               WHERE tenant_id = %s AND id = %s""",
            (answer.status_code, tenant_id, delivery_id),
        )
