"""What Celery runs for the books: accrual runs, the roll-up of accounts, seals. Thin doors; what is lost or comes twice changes
nothing.

Messages carry ids alone. The tables say what is to be done, and `accrue_due`, which beat sends, reads them.
"""

from __future__ import annotations

import logging

from hpts.celery import app, each
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
def accrue_due() -> int:
    """Make the runs that the calendar asks for, and send those that nobody works on."""
    return each(queries.tenants(), "the accruals", _accrue_due)


@app.task(name="ledger.seal_journals", expires=SEALS_EXPIRE)
def seal_journals() -> int:
    """Seal what has been posted since the last sweep. What it does not get to is the next one's."""
    return seals.seal_all(seconds=SEALING_SECONDS)


@app.task(name="ledger.roll_up_accounts", expires=ROLL_UP_SECONDS)
def roll_up_accounts() -> int:
    """Bring the account sums of each tenant that has posted up to its journal."""
    return each(balances.tenants_behind(), "the roll-up", balances.roll_up)


def start(tenant_id: str, run_id: str) -> None:
    """Send a run to the workers. Without a broker it waits for the sweep."""
    for _ in range(PULLERS):
        if not _send(tenant_id, run_id):
            return


def _accrue_due(tenant_id: str) -> int:
    found = runs.due(tenant_id, ACTOR)
    for run_id in found:
        start(tenant_id, run_id)
    return len(found)


def _send(tenant_id: str, run_id: str) -> bool:
    try:
        accrue.apply_async((tenant_id, run_id), retry=False)
    except Exception:
        logger.warning("the broker is away; run %s waits for the sweep", run_id, exc_info=True)
        return False
    return True
