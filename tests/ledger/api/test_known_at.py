"""Two times: what the books said at an instant (`known_at`) of a date (`as_of_date`), and what explains the difference."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from tests.conftest import Api, Json, Lender, Loan, line, refused, shown

LONG_AGO, FAR_AHEAD = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"
ROLES = {"1100": "principal", "1200": "interest", "1300": "fees", "2000": "suspense"}
DATES = ["2025-12-31", "2026-01-05", "2026-01-06", "2026-01-20", "2026-02-01", "2026-02-15", "9999-12-31"]


def balance(api: Api, loan: Loan, **query: str) -> Json:
    return shown(api.get(f"/v1/loans/{loan.loan_id}/balance", query))


def changes(api: Api, loan: Loan, earlier: str, later: str, **query: str) -> Json:
    query |= {"from_known_at": earlier, "to_known_at": later}
    return shown(api.get(f"/v1/loans/{loan.loan_id}/balance-changes", query))


def owed(body: Json) -> tuple[str, ...]:
    names = ("principal_outstanding_minor", "interest_receivable_minor", "fees_receivable_minor")
    return tuple(body[name] for name in names)


def just_before(instant: str) -> str:
    moment = datetime.fromisoformat(instant) - timedelta(microseconds=1)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def figures(entries: list[Json], loan: Loan) -> dict[str, int]:
    """What these entries sum to, by their own lines."""
    sums = dict.fromkeys(ROLES.values(), 0)
    for each in (item for entry in entries for item in entry["lines"]):
        role = ROLES.get(each["account_code"])
        if role is not None and each["layer"] == "SETTLED" and each.get("loan_id") == loan.loan_id:
            up = "CR" if role == "suspense" else "DR"
            sums[role] += int(each["amount_minor"]) * (1 if each["direction"] == up else -1)
    return sums


@pytest.fixture
def story(acme: Lender) -> list[Json]:
    """What happened to Acme's first loan as it was learned, dates in no order: its entries as the API shows them."""
    api, (loan, other, _) = acme.api, acme.loans
    api.disburse(loan, 100_000, "2026-01-05")
    api.disburse(other, 7, "2026-01-05")
    api.accrue("2026-01-06", (other, 7, 3), (loan, 100_000, 270))
    paid = api.pay(loan, 5_000, "2026-02-01")
    api.serve(loan, "fees", "2026-01-20", 500)
    api.pay(loan, 1_000, "2026-02-15", layer="PENDING")
    api.reverse(paid["journal_entry_id"], effective_at="2026-02-01")
    api.pay(loan, 900, "2026-01-20")
    api.adjust("2026-02-15", line("2000", "CR", 40, loan_id=loan.loan_id), line("1000", "DR", 40))
    api.pay(loan, 200_000, "2026-02-15")
    return api.history(loan)


# --- A loan ----------------------------------------------------------------------------------------------------------


def test_an_entry_is_known_from_the_instant_of_its_posting_on(api: Api, loan: Loan) -> None:
    first = api.disburse(loan, 1_000, "2026-01-05")["posted_at"]
    second = api.pay(loan, 300, "2026-01-10")["posted_at"]
    expected = {
        LONG_AGO: "0",
        just_before(first): "0",
        first: "1000",
        just_before(second): "1000",
        second: "700",
        FAR_AHEAD: "700",
    }
    for instant, principal in expected.items():
        body = balance(api, loan, known_at=instant)
        assert (body["known_at"], body["principal_outstanding_minor"]) == (instant, principal)


def test_the_books_at_every_instant_of_every_date_are_the_sum_of_what_was_posted_by_then(
    acme: Lender, story: list[Json]
) -> None:
    instants = [entry["posted_at"] for entry in story]
    assert instants == sorted(set(instants))
    for known_at, as_of in product([LONG_AGO, *map(just_before, instants), *instants, FAR_AHEAD], DATES):
        known = [entry for entry in story if entry["posted_at"] <= known_at and entry["effective_at"] <= as_of]
        expected = figures(known, acme.loan)
        body = balance(acme.api, acme.loan, known_at=known_at, as_of_date=as_of)
        assert owed(body) == tuple(str(expected[role]) for role in ("principal", "interest", "fees")), (known_at, as_of)
        assert body.get("last_activity_at") == max((entry["posted_at"] for entry in known), default=None)


def test_a_back_dated_entry_changes_a_past_date_and_not_what_was_known_of_it(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    reported = api.disburse(loan, 1, "2026-03-01")["posted_at"]
    api.pay(loan, 400, "2026-01-31")
    assert api.owed(loan, "2026-02-01") == (600, 0, 0)
    assert owed(balance(api, loan, as_of_date="2026-02-01", known_at=reported)) == ("1000", "0", "0")


def test_a_reversed_entry_was_known_until_it_was_reversed(api: Api, loan: Loan) -> None:
    made = api.disburse(loan, 1_000, "2026-01-05")
    undone = api.reverse(made["journal_entry_id"], effective_at="2026-01-05")
    assert owed(balance(api, loan, as_of_date="2026-01-05", known_at=just_before(undone["posted_at"])))[0] == "1000"
    assert owed(balance(api, loan, as_of_date="2026-01-05", known_at=undone["posted_at"]))[0] == "0"


def test_without_an_instant_the_answer_names_none(api: Api, loan: Loan) -> None:
    assert "known_at" not in balance(api, loan)
    assert "known_at" not in api.account("1100")


def test_the_default_date_is_today_whatever_the_instant(acme: Lender) -> None:
    before = acme.today
    as_of = balance(acme.api, acme.loan, known_at=LONG_AGO)["as_of_date"]
    assert as_of in (before.isoformat(), acme.today.isoformat())


def test_the_etag_is_that_of_the_loan_now(api: Api, loan: Loan) -> None:
    api.pay(loan, 5, "2026-01-05")
    path = f"/v1/loans/{loan.loan_id}"
    now = api.get(path).headers["ETag"]
    assert api.get(f"{path}/balance", {"known_at": LONG_AGO}).headers["ETag"] == now
    span = {"from_known_at": LONG_AGO, "to_known_at": LONG_AGO}
    assert api.get(f"{path}/balance-changes", span).headers["ETag"] == now


# --- An account ------------------------------------------------------------------------------------------------------


def test_an_account_at_an_instant_has_the_lines_that_were_posted_by_then(acme: Lender, story: list[Json]) -> None:
    api = acme.api
    for entry in story:
        body = api.account("1000", known_at=entry["posted_at"])
        cash = [
            item
            for known in story
            if known["posted_at"] <= entry["posted_at"]
            for item in known["lines"]
            if (item["account_code"], item["layer"]) == ("1000", "SETTLED")
        ]
        for side, name in (("DR", "dr_balance_minor"), ("CR", "cr_balance_minor")):
            assert int(body[name]) == sum(int(item["amount_minor"]) for item in cash if item["direction"] == side)
        assert body["known_at"] == entry["posted_at"]


def test_an_account_is_asked_on_both_axes_and_on_each_layer(acme: Lender, story: list[Json]) -> None:
    by_kind = {entry["event_type"]: entry for entry in reversed(story)}
    fee, announced = by_kind["fee_assessed"]["posted_at"], story[4]["posted_at"]
    assert acme.api.normal_balance("1300", known_at=fee, as_of_date="2026-01-19") == 0
    assert acme.api.normal_balance("1300", known_at=fee, as_of_date="2026-01-20") == 500
    assert acme.api.normal_balance("1300", known_at=just_before(fee), as_of_date="2026-01-20") == 0
    assert acme.api.normal_balance("1010", known_at=just_before(announced), layer="PENDING") == 0
    assert acme.api.normal_balance("1010", known_at=announced, layer="PENDING") == 1_000


def test_an_account_known_before_its_first_line_is_empty(acme: Lender, story: list[Json]) -> None:
    assert acme.api.normal_balance("1100", known_at=LONG_AGO) == 0
    assert acme.api.account("1100", known_at=FAR_AHEAD) | {"known_at": ""} == acme.api.account("1100") | {
        "known_at": ""
    }


# --- What explains the difference --------------------------------------------------------------------------------------


def test_the_entries_in_between_are_the_difference_on_every_date(acme: Lender, story: list[Json]) -> None:
    instants = [LONG_AGO, *(entry["posted_at"] for entry in story), FAR_AHEAD]
    for (earlier, later), as_of in product(zip(instants[::2], instants[1::2], strict=False), DATES):
        found = changes(acme.api, acme.loan, earlier, later, as_of_date=as_of)
        between = [entry for entry in story if earlier < entry["posted_at"] <= later and entry["effective_at"] <= as_of]
        settled = [entry for entry in between if any(item["layer"] == "SETTLED" for item in entry["lines"])]
        assert [entry["journal_entry_id"] for entry in found["entries"]] == [
            entry["journal_entry_id"] for entry in settled
        ]
        for role in ROLES.values():
            name = f"{role}_minor"
            moved = sum(int(entry[name]) for entry in found["entries"])
            assert int(found["opening"][name]) + moved == int(found["closing"][name])
            assert moved == figures(settled, acme.loan)[role]
        for instant, side in ((earlier, "opening"), (later, "closing")):
            said = balance(acme.api, acme.loan, known_at=instant, as_of_date=as_of)
            names = ("principal_minor", "interest_minor", "fees_minor")
            assert owed(said) == tuple(found[side][name] for name in names)


def test_a_span_of_any_length_is_explained(acme: Lender, story: list[Json]) -> None:
    whole = changes(acme.api, acme.loan, LONG_AGO, FAR_AHEAD)
    assert len(whole["entries"]) == len(story) - 1, "the announced payment has moved nothing"
    assert set(whole["opening"].values()) == {"0"}
    assert whole["entries"][-1]["balance"] == whole["closing"]
    at = story[3]["posted_at"]
    nothing = changes(acme.api, acme.loan, at, at)
    assert nothing["entries"] == []
    assert nothing["opening"] == nothing["closing"]


def test_changes_come_as_they_were_posted_and_show_what_a_late_entry_did(acme: Lender) -> None:
    api, loan = acme.api, acme.loan
    api.disburse(loan, 1_000, "2026-01-05")
    reported = api.disburse(loan, 500, "2026-03-01")["posted_at"]
    paid = api.pay(loan, 400, "2026-01-31")
    api.disburse(loan, 9, "2026-02-02")
    later = api.pay(loan, 50, "2026-01-30")
    found = changes(api, loan, reported, FAR_AHEAD, as_of_date="2026-02-01")
    nothing = {"interest_minor": "0", "fees_minor": "0", "suspense_minor": "0"}
    assert found == {
        "loan_id": loan.loan_id,
        "currency": "USD",
        "as_of_date": "2026-02-01",
        "from_known_at": reported,
        "to_known_at": FAR_AHEAD,
        "opening": {"principal_minor": "1000"} | nothing,
        "entries": [
            {
                "journal_entry_id": made["journal_entry_id"],
                "event_type": "payment_received",
                "effective_at": on,
                "posted_at": made["posted_at"],
                "principal_minor": change,
                "balance": {"principal_minor": after} | nothing,
            }
            | nothing
            for made, on, change, after in [
                (paid, "2026-01-31", "-400", "600"),
                (later, "2026-01-30", "-50", "550"),
            ]
        ],
        "closing": {"principal_minor": "550"} | nothing,
    }


def test_a_loan_sees_its_own_share_of_a_batch(acme: Lender) -> None:
    api, (first, second, third) = acme.api, acme.loans
    made = api.accrue("2026-01-06", (first, 0, 1), (second, 0, 2), (third, 0, 4))
    undone = api.reverse(made["journal_entry_id"], effective_at="2026-01-06")
    for loan, share in ((first, "1"), (second, "2"), (third, "4")):
        found = changes(api, loan, LONG_AGO, FAR_AHEAD)
        assert [(each["journal_entry_id"], each["interest_minor"]) for each in found["entries"]] == [
            (made["journal_entry_id"], share),
            (undone["journal_entry_id"], f"-{share}"),
        ]
        assert owed(balance(api, loan, known_at=made["posted_at"])) == ("0", share, "0")


def test_instants_in_the_wrong_order_are_refused(api: Api, loan: Loan) -> None:
    path = f"/v1/loans/{loan.loan_id}/balance-changes"
    span = {"from_known_at": "2026-01-01T00:00:00.5Z", "to_known_at": "2026-01-01T00:00:00Z"}
    refused(api.get(path, span), 400, "validation_failed", ["from_known_at"])
    shown(api.get(path, {"from_known_at": span["to_known_at"], "to_known_at": span["from_known_at"]}))


def test_both_instants_are_needed(api: Api, loan: Loan) -> None:
    path = f"/v1/loans/{loan.loan_id}/balance-changes"
    refused(api.get(path), 400, "validation_failed", ["from_known_at", "to_known_at"])
    refused(api.get(path, {"from_known_at": LONG_AGO}), 400, "validation_failed", ["to_known_at"])


# --- Parameters ------------------------------------------------------------------------------------------------------

BAD_INSTANTS = [
    *["", "now", "2026-03-01", "1772366400", "null", "2026-03-01T12:00Z", "2026-03-01T12Z", "20260301T120000Z"],
    *["2026-03-01T12:00:00", "2026-03-01T12:00:00+00:00", "2026-03-01T12:00:00-05:00", "2026-03-01T12:00:00z"],
    *["2026-03-01 12:00:00Z", "2026-03-01t12:00:00Z", "2026-03-01T12:00:00Z\n", " 2026-03-01T12:00:00Z"],
    *["2026-03-01T12:00:00.Z", "2026-03-01T12:00:00.1234567Z", "2026-03-01T12:00:00,5Z", "2026-02-30T12:00:00Z"],
    *["2026-03-01T24:00:00Z", "2026-03-01T12:60:00Z", "2026-12-31T23:59:60Z", "0000-01-01T00:00:00Z"],
    *["2026-03-01T12:00:0\u0661Z", "-infinity", "infinity", "10000-01-01T00:00:00Z"],
]


@pytest.mark.parametrize("value", BAD_INSTANTS)
def test_a_bad_instant_is_named(api: Api, loan: Loan, value: str) -> None:
    path = f"/v1/loans/{loan.loan_id}"
    refused(api.get(f"{path}/balance", {"known_at": value}), 400, "validation_failed", ["known_at"])
    query = {"currency": "USD", "known_at": value}
    refused(api.get("/v1/accounts/1100/balance", query), 400, "validation_failed", ["known_at"])
    span = {"from_known_at": value, "to_known_at": value}
    refused(api.get(f"{path}/balance-changes", span), 400, "validation_failed", [*span])


@pytest.mark.parametrize(
    "value",
    ["2026-03-01T12:00:00Z", "2026-03-01T12:00:00.5Z", "2026-03-01T12:00:00.120Z", "2024-02-29T23:59:59.000001Z"],
)
def test_an_instant_is_repeated_as_it_came(api: Api, loan: Loan, value: str) -> None:
    assert balance(api, loan, known_at=value)["known_at"] == value
    assert api.account("1100", known_at=value)["known_at"] == value


@pytest.mark.parametrize("path", ["/v1/loans/{}/balance", "/v1/accounts/1100/balance", "/v1/loans/{}/balance-changes"])
def test_an_instant_given_twice_is_refused(api: Api, loan: Loan, path: str) -> None:
    name = "to_known_at" if path.endswith("changes") else "known_at"
    answer = api.get(path.format(loan.loan_id), {name: [FAR_AHEAD, FAR_AHEAD]})
    refused(answer, 400, "validation_failed", [name])


def test_the_trial_balance_is_of_now(api: Api) -> None:
    query = {"currency": "USD", "known_at": FAR_AHEAD}
    refused(api.get("/v1/trial-balance", query), 400, "validation_failed", ["known_at"])


def test_reading_changes_needs_the_ledgers_scope(api: Api, loan: Loan) -> None:
    path, span = f"/v1/loans/{loan.loan_id}/balance-changes", {"from_known_at": LONG_AGO, "to_known_at": FAR_AHEAD}
    shown(api.get(path, span, scopes=["hpts:ledger:read"]))
    others = ["hpts:admin:*", "hpts:balances:read", "hpts:loans:read"]
    refused(api.get(path, span, scopes=others), 403, "insufficient_scope")
    refused(api.get(path, span, scopes=None), 401, "invalid_token")


def test_a_loan_of_another_tenant_was_never_known(acme: Lender, zenith: Lender) -> None:
    zenith.api.pay(zenith.loan, 5, "2026-01-05")
    span: dict[str, Any] = {"from_known_at": LONG_AGO, "to_known_at": FAR_AHEAD}
    path = f"/v1/loans/{zenith.loan.loan_id}"
    refused(acme.api.get(f"{path}/balance-changes", span), 404, "not_found")
    refused(acme.api.get(f"{path}/balance", {"known_at": FAR_AHEAD}), 404, "not_found")
    assert acme.api.normal_balance("2000", known_at=FAR_AHEAD) == 0


def test_now_is_known_as_soon_as_it_is_posted(acme: Lender) -> None:
    made = acme.api.pay(acme.loan, 5, "2026-01-05")["posted_at"]
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    found = changes(acme.api, acme.loan, just_before(made), max(made, now))
    assert [entry["suspense_minor"] for entry in found["entries"]] == ["5"]
