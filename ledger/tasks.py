"""What Celery runs for the books: accrual runs, the roll-up of accounts, seals. Thin doors; what is lost or comes twice changes
nothing.

Messages carry ids alone. The tables say what is to be done, and `accrue_due`, which beat sends, reads them.
"""

from __future__ import annotations

import logging

from hpts.celery import app
from ledger import balances, queries, runs, seals

ACTOR = "schedule:accruals"
# So many tasks take the chunks of one run side by side; each goes to the end of the queue after a while, so that a large
# run does not keep the others out.
PULLERS = 4
SECONDS = 5.0
# A message that was not taken by then is thrown away: the next sweep sends another.
EXPIRES = 60
ROLL_UP_SECONDS = 2.0
# Sweeps come more often than this, so that no second one waits behind a long one.
SEALING_SECONDS = 4.0
SEALS_EXPIRE = 10

logger = logging.getLogger("hpts.ledger")


@app.task(name="ledger.accrue", expires=EXPIRES)
def accrue(tenant_id: str, run_id: str) -> None:
    """Bring a run on. Who ends it looks for the program's next date, so that missed ones follow at once. Who finds no chunk free
    sends nothing: of one message many would become."""
    became = runs.work(tenant_id, run_id, seconds=SECONDS)
    if became == "left":
        _send(tenant_id, run_id)
    elif became == "ended":
        _accrue_due(tenant_id)


@app.task(name="ledger.accrue_due", expires=EXPIRES)
def accrue_due() -> None:
    """Make the runs that the calendar asks for, and send those that nobody works on."""
    for tenant_id in queries.tenants():
        try:
            _accrue_due(tenant_id)
        except Exception:
            # One tenant's fault is not another's.
            logger.exception("the accruals of tenant %s are not looked after", tenant_id)


@app.task(name="ledger.seal_journals", expires=SEALS_EXPIRE)
def seal_journals() -> None:
    """Seal what has been posted since the last sweep. What it does not get to is the next one's."""
    seals.seal_all(seconds=SEALING_SECONDS)


@app.task(name="ledger.roll_up_accounts", expires=ROLL_UP_SECONDS)
def roll_up_accounts() -> None:
    """Bring the account sums of each tenant that has posted up to its journal."""
    for tenant_id in balances.tenants_behind():
        try:
            balances.roll_up(tenant_id)
        except Exception:
            logger.exception("the accounts of tenant %s are not rolled up", tenant_id)


def start(tenant_id: str, run_id: str) -> None:
    """Send a run to the workers. Without a broker it waits for the sweep."""
    for _ in range(PULLERS):
        if not _send(tenant_id, run_id):
            return


def _accrue_due(tenant_id: str) -> None:
    for run_id in runs.due(tenant_id, ACTOR):
        start(tenant_id, run_id)


def _send(tenant_id: str, run_id: str) -> bool:
    try:
        accrue.apply_async((tenant_id, run_id), retry=False)
    except Exception:
        logger.warning("the broker is away; run %s waits for the sweep", run_id, exc_info=True)
        return False
    return True
