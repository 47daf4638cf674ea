"""Many writes in one request: all of them or nothing in one transaction, or each by itself under a key of its own.

An item is what a POST by itself would be: a path and a body. Nothing here knows what an operation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import msgspec

from hpts import fields
from hpts.problems import FieldProblem, IdempotencyKeyInvalid, InsufficientScope, Problem, ValidationFailed, problem_of
from ledger.idempotency import Answer, Call, answered, fingerprint, once
from ledger.operations import Members, Path, Write
from ledger.posting import Posting, Touches

# Room for "#999" behind the batch's own key.
MAX_KEY = 250


@dataclass(frozen=True, slots=True)
class Item:
    """One write of a batch, not yet read: its operation, the route's parameters, the body as it came."""

    write: Write[Any]
    path: Path
    raw: object


# A path to its operation and parameters; raises a Problem when there is none.
Router = Callable[[str], tuple[Write[Any], Path]]
MayCall = Callable[[str], bool]


def all_or_nothing(call: Call, items: list[Item], may_call: MayCall) -> Answer:
    """Every item in one transaction. The first one that is refused refuses the batch: its problem, with `items.N` before it."""
    for position, item in enumerate(items):
        _check_scope(item, position, may_call)
    bodies = _all_read(items)
    try:
        touches = reduce(
            lambda both, pair: both | pair[0].write.touches(pair[1], pair[0].path),
            zip(items, bodies, strict=True),
            Touches(),
        )
    except ValueError as error:
        raise ValidationFailed("One batch accrues one date.") from error

    def work(posting: Posting) -> Members:
        outcomes = []
        for position, (item, body) in enumerate(zip(items, bodies, strict=True)):
            try:
                outcomes.append({"status": item.write.status, "body": item.write.run(posting, body, item.path)})
            except Problem as problem:
                raise _placed(problem, position) from problem
        return {"mode": "atomic", "items": outcomes}

    return once(call, touches, work)


def one_by_one(call: Call, items: list[Item], may_call: MayCall) -> Answer:
    """Each item in a transaction and under a key of its own, in order; a repeat goes on where the first one broke off.

    An item's key is the batch's and its position, joined by a character that no client's key holds.
    """
    if len(call.key) > MAX_KEY:
        raise IdempotencyKeyInvalid(f"The key of a batch has at most {MAX_KEY} characters.")
    before = answered(call)
    if before is not None:
        return before
    outcomes = [_outcome(call, item, position, may_call) for position, item in enumerate(items)]
    members = msgspec.Raw(b'{"mode":"each","items":[' + b",".join(outcomes) + b"]}")
    return once(call, Touches(mode="read"), lambda posting: members)


def _outcome(call: Call, item: Item, position: int, may_call: MayCall) -> bytes:
    try:
        _check_scope(item, position, may_call)
        body = fields.parse(item.raw, item.write.shape)
        own = Call(call.origin, f"{call.key}#{position}", fingerprint(item.write.operation_id, item.path, item.raw))
        done = once(own, item.write.touches(body, item.path), lambda posting: item.write.run(posting, body, item.path))
    except Exception as error:
        problem = problem_of(error)
        return msgspec.json.encode({"status": problem.status, "problem": _shown(problem)})
    return f'{{"status":{200 if done.replayed else item.write.status},"body":{done.body}}}'.encode()


def _all_read(items: list[Item]) -> list[Any]:
    """Every body as its shape. All wrong fields of all items are named at once."""
    bodies, wrong = [], []
    for position, item in enumerate(items):
        try:
            bodies.append(fields.parse(item.raw, item.write.shape))
        except ValidationFailed as problem:
            wrong += [error._replace(field=_join(position, error.field)) for error in problem.errors]
    if wrong:
        raise ValidationFailed("One or more fields are not valid.", wrong)
    return bodies


def _check_scope(item: Item, position: int, may_call: MayCall) -> None:
    if not may_call(item.write.scope):
        raise InsufficientScope(f"items.{position} needs the scope {item.write.scope}.")


def _placed(problem: Problem, position: int) -> Problem:
    """The problem, saying which item it is about."""
    errors = [error._replace(field=_join(position, error.field)) for error in problem.errors]
    return type(problem)(f"items.{position}: {problem.detail}", errors)


def _join(position: int, field: str) -> str:
    return f"items.{position}.body.{field}" if field else f"items.{position}.body"


def _shown(problem: Problem) -> Mapping[str, object]:
    """The members of a problem that are about the item; the rest is the batch's own."""
    shown: dict[str, object] = {"code": problem.code, "title": problem.title, "detail": problem.detail}
    if problem.errors:
        shown["errors"] = [FieldProblem._asdict(error) for error in problem.errors]
    return shown
