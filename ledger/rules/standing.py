"""What a loan's state refuses. The state is derived (ledger/state.py); nothing here sets it."""

from __future__ import annotations

from ledger.errors import LoanStateRefuses
from ledger.state import CHARGED_OFF, LoanState

_WORDS = {"charged_off": "charged off", "refinanced": "refinanced"}


def not_ended(loan: LoanState, what: str) -> None:
    """Refuse `what` on a loan that was charged off or refinanced."""
    if loan.ended_as is not None:
        raise LoanStateRefuses(f"{what} is refused: loan {loan.loan_id} has been {_WORDS[loan.ended_as]}.")


def not_charged_off(loan: LoanState, what: str) -> None:
    """Refuse `what` on a charged-off loan."""
    if loan.ended_as == CHARGED_OFF:
        raise LoanStateRefuses(f"{what} is refused: loan {loan.loan_id} has been charged off.")
