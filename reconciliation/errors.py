"""Reconciliation's own refusals; the handler in hpts/problems.py renders them."""

from __future__ import annotations

from hpts.problems import Problem


class AlreadyResolved(Problem):
    """The break has been resolved, once and for all."""

    status, code, title = 409, "already_resolved", "Already resolved"


class ResolutionRefused(Problem):
    """The break cannot be resolved in this way: the amounts do not agree, a line is matched already, or nothing differs."""

    status, code, title = 422, "resolution_refused", "The break is not resolved by this"
