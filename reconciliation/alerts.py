"""Telling people of newly opened breaks by mail. What has to be told is written where breaks are opened (reconciling.py).

An alert is taken for a while, mailed outside of any transaction, and then marked: who dies in between is given up, and the next
one mails it again with the same Message-ID. Without addresses nothing is mailed, and nothing is lost for a week.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from django.conf import settings
from django.core.mail import EmailMessage
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant, tenant_transaction
from ledger.money import in_major_units

logger = logging.getLogger("hpts.reconciliation")

# How long one attempt may take; after a failure the next one is made twice as late each time, an hour later at most.
TAKEN_SECONDS = 60
LONGEST_PAUSE_SECONDS = 3_600
# What nobody wanted to be told for so long is old news.
NEWS_DAYS = 7
NAMED = 50


class _Break(NamedTuple):
    kind: str
    amount_minor: int
    value_date: date
    reference: str | None


class _Alert(NamedTuple):
    """An alert that is this process's to mail."""

    id: str
    bank_account_ref: str
    currency: str
    break_count: int
    attempt: int
    tenant: str
    breaks: Sequence[_Break]


def mail_alerts(tenant_id: str) -> int:
    """Mail the tenant's alerts that are due; gives how many were. A mail server that refuses is tried again later."""
    mailed = 0
    while settings.ALERT_EMAILS:
        with tenant_transaction(tenant_id) as cursor:
            alert = _take(cursor)
        if alert is None:
            break
        try:
            _message(tenant_id, alert).send()
        except Exception:
            logger.exception("alert %s of tenant %s could not be mailed; it is tried again", alert.id, tenant_id)
            break
        with tenant_transaction(tenant_id) as cursor:
            cursor.execute(
                """UPDATE reconciliation_alert SET mailed_at = statement_timestamp()
                   WHERE tenant_id = %s AND id = %s AND mailed_at IS NULL""",
                (tenant_id, alert.id),
            )
        mailed += 1
    return mailed


def _take(cursor: CursorWrapper) -> _Alert | None:
    """The next alert that is due, for a while this process's alone."""
    cursor.execute(
        """UPDATE reconciliation_alert a
           SET attempt = least(a.attempt + 1, 100),
               due_at = statement_timestamp()
                        + make_interval(secs => least(%(taken)s * 2 ^ least(a.attempt, 10), %(longest)s))
           FROM (SELECT id FROM reconciliation_alert
                 WHERE tenant_id = %(tenant)s AND mailed_at IS NULL AND due_at <= statement_timestamp()
                   AND created_at > statement_timestamp() - make_interval(days => %(news)s)
                 ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED) due
           WHERE a.tenant_id = %(tenant)s AND a.id = due.id
           RETURNING a.id::text, a.bank_account_ref,
                     (SELECT b.currency FROM bank_account b WHERE b.tenant_id = a.tenant_id AND b.ref = a.bank_account_ref),
                     a.break_count, a.attempt, (SELECT t.name FROM tenant t WHERE t.id = a.tenant_id)""",
        {
            "tenant": current_tenant(),
            "taken": TAKEN_SECONDS,
            "longest": LONGEST_PAUSE_SECONDS,
            "news": NEWS_DAYS,
        },
    )
    row = cursor.fetchone()
    return None if row is None else _Alert(*(*row, _breaks(cursor, row[0])))


def _breaks(cursor: CursorWrapper, alert_id: str) -> list[_Break]:
    cursor.execute(
        """SELECT kind, amount_minor, value_date, reference FROM reconciliation_break
           WHERE tenant_id = %s AND alert_id = %s ORDER BY value_date, id LIMIT %s""",
        (current_tenant(), alert_id, NAMED),
    )
    return [_Break(*row) for row in cursor.fetchall()]


def _message(tenant_id: str, alert: _Alert) -> EmailMessage:
    plural = "" if alert.break_count == 1 else "s"
    lines = [
        f"Reconciliation of the bank account {alert.bank_account_ref} has opened {alert.break_count} break{plural}:",
        "",
        *(_line(each, alert.currency) for each in alert.breaks),
    ]
    if alert.break_count > len(alert.breaks):
        lines.append(f"... and {alert.break_count - len(alert.breaks)} more.")
    path = f"/v1/reconciliation/breaks?state=open&bank_account_ref={alert.bank_account_ref}"
    lines += ["", f"All that are open: GET {path}", f"Tenant: {alert.tenant} ({tenant_id})"]
    sender = settings.DEFAULT_FROM_EMAIL
    return EmailMessage(
        subject=_one_line(
            f"{alert.break_count} reconciliation break{plural} on {alert.bank_account_ref} of {alert.tenant}"
        ),
        body="\n".join(lines) + "\n",
        to=settings.ALERT_EMAILS,
        # The same at every attempt, so that a mail system can drop the second one.
        headers={"Message-ID": f"<{alert.id}@{sender.rpartition('@')[2].rstrip('>') or 'hpts'}>"},
    )


def _line(each: _Break, currency: str) -> str:
    amount: Any = f"{currency} {in_major_units(each.amount_minor, currency)}"
    return _one_line(f"  {each.value_date}  {each.kind:<18} {amount:>20}  {each.reference or ''}").rstrip()


def _one_line(text: str) -> str:
    """References are the bank's: nothing of them may begin a line, or a header, of its own."""
    return "".join(character if character.isprintable() else " " for character in text)
