"""The promises of the books, each proven by one reading of one tenant's rows: a flat list of checks.

A check takes the cursor of a `tenant_transaction()` and answers the first rows that break its promise; none means kept. Each is a
single statement and so looks at a single moment: postings may go on while it runs. Nothing here writes, and nothing here
trusts what the write path computed: documents are rebuilt by PostgreSQL, balances are summed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant
from ledger import document
from ledger.balances import BALANCE_DIFFERENCES
from ledger.queries import CONTROL_ACCOUNTS, first_id
from ledger.seal_keys import seal_keys

# How many rows a check names at most. The first one is what somebody will look at.
NAMED = 10


@dataclass(frozen=True, slots=True)
class Breach:
    """A row that breaks a promise: its table, its key inside the tenant, and what is wrong, with figures."""

    table: str
    row: dict[str, object]
    problem: str

    def __str__(self) -> str:
        key = ", ".join(f"{name} {value}" for name, value in self.row.items())
        return f"{self.table} {key}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a proof looks at: everything; or some entries, and the loans and dates that they touch. Who takes this up in the order
    of the journal has seen all in the end, but for damage behind the point where it began."""

    entries: Sequence[str] | None = None
    loans: Sequence[str] = ()
    dates: Sequence[date] = ()
    # For what the entries do not lead to: written since this instant, or behind this point of the outbox.
    since: datetime | None = None
    after: tuple[str, str] | None = None

    @property
    def is_everything(self) -> bool:
        return self.entries is None

    def entries_of(self, column: str) -> str:
        """The condition that a column names an entry of the scope, to be put behind others."""
        return "" if self.entries is None else f"AND {column} = ANY (%(entries)s::uuid[])"

    def loans_of(self, column: str) -> str:
        return "" if self.entries is None else f"AND {column} = ANY (%(loans)s::uuid[])"

    def dates_of(self, column: str) -> str:
        return "" if self.entries is None else f"AND {column} = ANY (%(dates)s::date[])"


EVERYTHING = Scope()
Check = Callable[[CursorWrapper, Scope], list[Breach]]


def _breaches(cursor: CursorWrapper, scope: Scope, sql: str) -> list[Breach]:
    """The first rows of a statement that answers (table, key as JSON, problem). OFFSET 0, so that it is planned for the whole
    answer, which mostly is none, and not for the first ten rows."""
    cursor.execute(
        f"""SELECT bad.tbl, bad.key::text, bad.problem FROM (SELECT * FROM ({sql}) found OFFSET 0) AS bad (tbl, key, problem)
            ORDER BY 1, 2 LIMIT {NAMED}""",
        {
            "tenant": current_tenant(),
            "entries": list(scope.entries or ()),
            "loans": list(scope.loans),
            "dates": list(scope.dates),
            "since": scope.since,
        },
    )
    return [Breach(table, json.loads(key), problem) for table, key, problem in cursor.fetchall()]


# --- The journal -----------------------------------------------------------------------------------------------------


def entries_are_whole(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I1. Every entry has at least two lines, numbered from 1 without a gap, as many as it says."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'journal_entry', json_build_object('journal_entry_id', e.id),
                  'says ' || e.line_count || ' lines, has ' || coalesce(l.lines, 0)
                  || coalesce(', numbered ' || l.first || ' to ' || l.last, '')
           FROM journal_entry e
           LEFT JOIN (SELECT entry_id, count(*) AS lines, min(sequence) AS first, max(sequence) AS last
                      FROM journal_line WHERE tenant_id = %(tenant)s {scope.entries_of("entry_id")}
                      GROUP BY entry_id) l ON l.entry_id = e.id
           WHERE e.tenant_id = %(tenant)s {scope.entries_of("e.id")}
             AND (l.lines IS NULL OR l.lines < 2 OR l.lines <> e.line_count OR l.first <> 1 OR l.last <> l.lines)""",
    )


def entries_balance(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I2. Debits equal credits in every entry, currency and layer."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'journal_entry', json_build_object('journal_entry_id', entry_id),
                  'debits minus credits are ' || sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END)
                  || ' ' || currency || ' on ' || layer
           FROM journal_line WHERE tenant_id = %(tenant)s {scope.entries_of("entry_id")}
           GROUP BY entry_id, currency, layer
           HAVING sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END) <> 0""",
    )


def trial_balance_is_zero(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I3. Over the accounts of the chart, debits equal credits in every currency and layer."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'journal_line', json_build_object('currency', s.currency, 'layer', s.layer),
                  'the trial balance is off by ' || sum(s.net)
           FROM (SELECT account_code, currency, layer,
                        sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END) AS net
                 FROM journal_line WHERE tenant_id = %(tenant)s {scope.entries_of("entry_id")}
                 GROUP BY account_code, currency, layer) s
           JOIN gl_account a ON a.tenant_id = %(tenant)s AND a.code = s.account_code
           GROUP BY s.currency, s.layer
           HAVING sum(s.net) <> 0""",
    )


def documents_match_rows(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """Every entry's document is, byte for byte, what its row and its lines say, and content_hash is its SHA-256. Actor and
    description alone stand in the document only: they are taken from its head. OFFSET 0, so that each thing is made once."""
    return _breaches(
        cursor,
        scope,
        f"""WITH line AS (
               SELECT entry_id, string_agg(concat(
                   '{{"account_code":"', account_code, '","amount_minor":"', amount_minor, '"',
                   ',"borrower_id":"' || borrower_id || '"', ',"currency":"', currency, '","direction":"', direction, '"',
                   CASE WHEN external_ref IS NOT NULL THEN ',"external_ref":' || to_json(external_ref) END,
                   ',"layer":"', layer, '"', ',"loan_id":"' || loan_id || '"', ',"sequence":', sequence, '}}'),
                   ',' ORDER BY sequence) AS lines
               FROM journal_line WHERE tenant_id = %(tenant)s {scope.entries_of("entry_id")} GROUP BY entry_id
           ), head AS (
               SELECT e.*, split_part(left(document, {document.HEAD}), ',"effective_at":"', 1) || '}}' AS head
               FROM journal_entry e WHERE tenant_id = %(tenant)s {scope.entries_of("id")} OFFSET 0
           ), said AS (
               SELECT h.*, CASE WHEN head IS JSON OBJECT THEN head::json -> 'actor' END AS actor,
                      CASE WHEN head IS JSON OBJECT THEN head::json -> 'description' END AS description
               FROM head h OFFSET 0
           ), held AS (
               SELECT e.id, e.actor, e.content_hash, e.document, concat(
                   '{{"actor":', e.actor, ',"correlation_id":"', e.correlation_id, '"', ',"description":' || e.description,
                   ',"effective_at":"', to_char(e.effective_at, 'YYYY-MM-DD'), '","event_type":"', e.event_type,
                   '","journal_entry_id":"', e.id, '","lines":[', l.lines, '],"posted_at":"',
                   to_char(e.posted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '"',
                   ',"reverses_entry_id":"' || e.reverses_entry_id || '"', ',"tenant_id":"', e.tenant_id, '","v":1}}') AS rows
               FROM said e LEFT JOIN line l ON l.entry_id = e.id OFFSET 0
           )
           SELECT 'journal_entry', json_build_object('journal_entry_id', id),
                  CASE WHEN document = rows THEN 'content_hash is not the document''s SHA-256'
                       WHEN actor IS NULL THEN 'the document is not an entry in JSON'
                       ELSE 'the document differs from the rows' END
           FROM held
           -- What was rendered stands for the document, which is long and would be unpacked once more.
           WHERE rows <> document OR content_hash IS DISTINCT FROM sha256(convert_to(rows, 'UTF8'))""",
    )


# --- Balances --------------------------------------------------------------------------------------------------------


def balances_match_lines(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I4. Every loan's balances are the sums of its lines."""
    differences = BALANCE_DIFFERENCES if not scope.is_everything else BALANCE_DIFFERENCES.replace("%(loans)s", "NULL")
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'loan_balance', json_build_object('loan_id', loan_id, 'account_code', account_code, 'layer', layer),
                   coalesce('says ' || recorded, 'is missing') || ', the lines sum to ' || minor
            FROM ({differences}) d""",
    )


def control_accounts_match_loans(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I3. Every account that is kept per loan equals the sum of the loans' balances on it, per currency and layer."""
    lines = """SELECT a.code, j.currency, j.layer,
                      sum(CASE j.direction WHEN a.normal_side THEN j.amount_minor ELSE -j.amount_minor END) AS minor
               FROM journal_line j
               JOIN gl_account a ON a.tenant_id = j.tenant_id AND a.code = j.account_code AND a.per_loan
               WHERE j.tenant_id = %(tenant)s GROUP BY a.code, j.currency, j.layer"""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'gl_account', json_build_object('account_code', code, 'currency', currency, 'layer', layer),
                  'the account is at ' || coalesce(l.minor, 0) || ', its loans at ' || coalesce(b.minor, 0)
           FROM ({lines if scope.is_everything else CONTROL_ACCOUNTS}) l
           FULL JOIN (SELECT account_code AS code, currency, layer, sum(balance_minor) AS minor
                      FROM loan_balance WHERE tenant_id = %(tenant)s GROUP BY 1, 2, 3) b USING (code, currency, layer)
           WHERE coalesce(l.minor, 0) <> coalesce(b.minor, 0)""",
    )


def account_sums_match_lines(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I4. The sums of accounts, by day, month and year, are those of the lines of all entries up to the point that they have
    reached. Months are the sum of their days, and years of their months, whatever the scope."""
    days = """SELECT currency, layer, account_code, starts_on, dr_minor, cr_minor
              FROM account_sum WHERE tenant_id = %(tenant)s AND span = 'day'"""
    lines = """SELECT currency, layer, account_code, effective_at, sum(dr), sum(cr)
               FROM (SELECT l.currency, l.layer, l.account_code, l.effective_at,
                            CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE 0 END AS dr,
                            CASE l.direction WHEN 'CR' THEN l.amount_minor ELSE 0 END AS cr
                     FROM journal_line l WHERE l.tenant_id = %(tenant)s
                     UNION ALL
                     SELECT l.currency, l.layer, l.account_code, l.effective_at,
                            CASE l.direction WHEN 'DR' THEN -l.amount_minor ELSE 0 END,
                            CASE l.direction WHEN 'CR' THEN -l.amount_minor ELSE 0 END
                     FROM outbox_message o
                     JOIN journal_line l ON l.tenant_id = o.tenant_id AND l.entry_id = o.entry_id
                     WHERE o.tenant_id = %(tenant)s
                       AND (o.created_xid, o.entry_id) > (coalesce((SELECT created_xid FROM account_rollup
                                                                    WHERE tenant_id = %(tenant)s), '0'),
                                                          coalesce((SELECT entry_id FROM account_rollup
                                                                    WHERE tenant_id = %(tenant)s),
                                                                   '00000000-0000-0000-0000-000000000000'))) l
               GROUP BY 1, 2, 3, 4"""
    return _breaches(
        cursor,
        scope,
        f"""WITH day (currency, layer, account_code, day, dr, cr) AS ({days if not scope.is_everything else lines}), counted AS (
               SELECT p.span, d.currency, d.layer, d.account_code, date_trunc(p.span, d.day::timestamp)::date AS starts_on,
                      sum(d.dr) AS dr, sum(d.cr) AS cr
               FROM day d CROSS JOIN (VALUES ('day'), ('month'), ('year')) p (span)
               GROUP BY 1, 2, 3, 4, 5
           )
           SELECT 'account_sum', json_build_object('account_code', account_code, 'currency', currency, 'layer', layer,
                                                   'span', span, 'starts_on', starts_on),
                  coalesce('says ' || s.dr_minor || ' and ' || s.cr_minor, 'is missing') || ', the lines sum to '
                  || coalesce(c.dr, 0) || ' and ' || coalesce(c.cr, 0)
           FROM (SELECT * FROM account_sum WHERE tenant_id = %(tenant)s) s
           FULL JOIN counted c USING (span, currency, layer, account_code, starts_on)
           WHERE (coalesce(s.dr_minor, 0), coalesce(s.cr_minor, 0)) <> (coalesce(c.dr, 0), coalesce(c.cr, 0))
           UNION ALL
           SELECT 'account_sum', json_build_object('currency', currency, 'layer', layer, 'span', span, 'starts_on', starts_on),
                  'debits minus credits are ' || sum(dr_minor - cr_minor)
           FROM account_sum WHERE tenant_id = %(tenant)s GROUP BY span, currency, layer, starts_on
           HAVING sum(dr_minor - cr_minor) <> 0
           UNION ALL
           SELECT 'account_rollup', json_build_object('journal_entry_id', r.entry_id), 'there is no such entry in the outbox'
           FROM account_rollup r
           WHERE r.tenant_id = %(tenant)s
             AND NOT EXISTS (SELECT FROM outbox_message o WHERE o.tenant_id = r.tenant_id AND o.created_xid = r.created_xid
                             AND o.entry_id = r.entry_id)""",
    )


def no_balance_was_ever_below_zero(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I11. What a loan owes, and its suspense, are not below zero as of any date."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT DISTINCT ON (loan_id, account_code, layer) 'loan_balance',
                  json_build_object('loan_id', loan_id, 'account_code', account_code, 'layer', layer),
                  'is ' || minor || ' as of ' || to_char(effective_at, 'YYYY-MM-DD')
           FROM (SELECT l.loan_id, l.account_code, l.layer, l.effective_at,
                        sum(sum(CASE l.direction WHEN a.normal_side THEN l.amount_minor ELSE -l.amount_minor END))
                            OVER (PARTITION BY l.loan_id, l.account_code, l.layer ORDER BY l.effective_at) AS minor
                 FROM journal_line l
                 JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code
                     AND a.per_loan AND a.role IN ('principal', 'interest', 'fees', 'suspense')
                 WHERE l.tenant_id = %(tenant)s {scope.loans_of("l.loan_id")}
                 GROUP BY l.loan_id, l.account_code, l.layer, l.effective_at) running
           WHERE minor < 0
           ORDER BY loan_id, account_code, layer, effective_at""",
    )


# --- What belongs together -------------------------------------------------------------------------------------------


def lines_belong_together(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I5. Every line has its entry, on the same date; its account; and its loan, with that loan's borrower and currency."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'journal_line', json_build_object('journal_entry_id', l.entry_id, 'sequence', l.sequence),
                  CASE WHEN e.id IS NULL THEN 'there is no such entry'
                       WHEN e.effective_at <> l.effective_at THEN 'is dated ' || l.effective_at || ', the entry '
                                                                  || e.effective_at
                       WHEN a.code IS NULL THEN 'there is no account ' || l.account_code
                       WHEN l.loan_id IS NULL THEN 'account ' || a.code || ' is kept per loan, and no loan is named'
                       WHEN o.id IS NULL THEN 'there is no loan ' || l.loan_id
                       ELSE 'borrower or currency is not that of loan ' || o.id END
           FROM journal_line l
           LEFT JOIN journal_entry e ON e.tenant_id = l.tenant_id AND e.id = l.entry_id
           LEFT JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code
           LEFT JOIN loan o ON o.tenant_id = l.tenant_id AND o.id = l.loan_id
           WHERE l.tenant_id = %(tenant)s {scope.entries_of("l.entry_id")}
             AND (e.id IS NULL OR e.effective_at <> l.effective_at OR a.code IS NULL
                  OR (l.loan_id IS NULL AND a.per_loan)
                  OR (l.loan_id IS NOT NULL AND (o.id IS NULL OR o.borrower_id IS DISTINCT FROM l.borrower_id
                                                 OR o.currency <> l.currency)))""",
    )


def entries_belong_together(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I5. Every entry names the one loan of its lines, and entries that exist; every loan has its program, in one currency."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'journal_entry', json_build_object('journal_entry_id', e.id),
                  'names loan ' || coalesce(e.loan_id::text, 'none') || ', its lines '
                  || CASE WHEN l.first IS NULL THEN 'none' WHEN l.first = l.last THEN l.first ELSE 'several' END
           FROM journal_entry e
           JOIN (SELECT entry_id, min(loan_id::text COLLATE "C") AS first, max(loan_id::text COLLATE "C") AS last
                 FROM journal_line WHERE tenant_id = %(tenant)s {scope.entries_of("entry_id")} GROUP BY entry_id) l
               ON l.entry_id = e.id
           WHERE e.tenant_id = %(tenant)s
             AND e.loan_id IS DISTINCT FROM CASE WHEN l.first = l.last THEN l.first::uuid END
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', e.id), 'its id does not begin with the time of posting'
           FROM journal_entry e
           WHERE e.tenant_id = %(tenant)s {scope.entries_of("e.id")}
             AND (abs(extract(epoch FROM e.posted_at - uuid_extract_timestamp(e.id))) < 0.002) IS NOT TRUE
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', e.id),
                  'there is no entry ' || t.id || ', which it ' || t.verb
           FROM journal_entry e
           CROSS JOIN LATERAL (VALUES ('reverses', e.reverses_entry_id), ('settles', e.settles_entry_id)) t (verb, id)
           LEFT JOIN journal_entry o ON o.tenant_id = e.tenant_id AND o.id = t.id
           WHERE e.tenant_id = %(tenant)s {scope.entries_of("e.id")} AND t.id IS NOT NULL AND o.id IS NULL
           UNION ALL
           SELECT 'loan', json_build_object('loan_id', o.id),
                  CASE WHEN p.id IS NULL THEN 'there is no program ' || o.program_id
                       ELSE 'is in ' || o.currency || ', its program in ' || p.currency END
           FROM loan o
           LEFT JOIN program p ON p.tenant_id = o.tenant_id AND p.id = o.program_id
           WHERE o.tenant_id = %(tenant)s {scope.loans_of("o.id")} AND p.currency IS DISTINCT FROM o.currency""",
    )


def balances_belong_together(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I5. Every balance has its loan, in that loan's currency, and an account that is kept per loan."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'loan_balance',
                  json_build_object('loan_id', b.loan_id, 'account_code', b.account_code, 'layer', b.layer),
                  CASE WHEN o.id IS NULL THEN 'there is no such loan'
                       WHEN a.code IS NULL THEN 'account ' || b.account_code || ' is not kept per loan'
                       WHEN o.currency <> b.currency THEN 'is in ' || b.currency || ', the loan in ' || o.currency
                       ELSE 'floored is ' || b.floored || ' for the role ' || coalesce(a.role, 'none') END
           FROM loan_balance b
           LEFT JOIN loan o ON o.tenant_id = b.tenant_id AND o.id = b.loan_id
           LEFT JOIN gl_account a ON a.tenant_id = b.tenant_id AND a.code = b.account_code AND a.per_loan
           WHERE b.tenant_id = %(tenant)s {scope.loans_of("b.loan_id")}
             AND (o.id IS NULL OR a.code IS NULL OR o.currency <> b.currency
                  OR b.floored <> coalesce(a.role IN ('principal', 'interest', 'fees', 'suspense'), false))""",
    )


def terms_belong_together(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I5. The tenant exists; every program has terms; every row of terms has its program or loan; terms that came with an entry
    came with a restructure of that loan, from its date on."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'tenant', json_build_object('tenant_id', %(tenant)s::uuid), 'its row is missing'
           WHERE NOT EXISTS (SELECT FROM tenant WHERE id = %(tenant)s)
           UNION ALL
           SELECT 'program', json_build_object('program_id', p.id), 'has no terms'
           FROM program p
           WHERE p.tenant_id = %(tenant)s
             AND NOT EXISTS (SELECT FROM program_terms t WHERE t.tenant_id = p.tenant_id AND t.program_id = p.id)
           UNION ALL
           SELECT 'program_terms', json_build_object('program_id', t.program_id, 'id', t.id), 'there is no such program'
           FROM program_terms t
           WHERE t.tenant_id = %(tenant)s
             AND NOT EXISTS (SELECT FROM program p WHERE p.tenant_id = t.tenant_id AND p.id = t.program_id)
           UNION ALL
           SELECT 'loan_terms', json_build_object('loan_id', t.loan_id, 'id', t.id), 'there is no such loan'
           FROM loan_terms t
           WHERE t.tenant_id = %(tenant)s {scope.loans_of("t.loan_id")}
             AND NOT EXISTS (SELECT FROM loan o WHERE o.tenant_id = t.tenant_id AND o.id = t.loan_id)
           UNION ALL
           SELECT 'loan_terms', json_build_object('loan_id', t.loan_id, 'id', t.id),
                  'came with entry ' || t.entry_id || ', which is no restructure of the loan on ' || t.effective_at
           FROM loan_terms t
           LEFT JOIN journal_entry e ON e.tenant_id = t.tenant_id AND e.id = t.entry_id
           WHERE t.tenant_id = %(tenant)s {scope.loans_of("t.loan_id")} AND t.entry_id IS NOT NULL
             AND (e.event_type, e.loan_id, e.effective_at) IS DISTINCT FROM ('restructure', t.loan_id, t.effective_at)""",
    )


def loans_stand_as_the_journal_says(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """A loan knows how many entries in force have lent principal (giving a payment back lends none), and what has ended it."""
    return _breaches(
        cursor,
        scope,
        f"""WITH reversed AS MATERIALIZED (
               SELECT reverses_entry_id AS id FROM journal_entry WHERE tenant_id = %(tenant)s AND event_type = 'reversal'
           ), lent AS (
               SELECT l.loan_id, count(DISTINCT l.entry_id) AS draws
               FROM journal_line l
               JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.role = 'principal'
               JOIN journal_entry e ON e.tenant_id = l.tenant_id AND e.id = l.entry_id
                   AND e.event_type NOT IN ('reversal', 'payment_returned', 'payment_allocated')
               WHERE l.tenant_id = %(tenant)s {scope.loans_of("l.loan_id")} AND l.loan_id IS NOT NULL AND l.layer = 'SETTLED'
                 AND l.direction = 'DR' AND NOT EXISTS (SELECT FROM reversed r WHERE r.id = e.id)
               GROUP BY l.loan_id
           ), ended AS (
               SELECT l.loan_id, array_agg(DISTINCT CASE e.event_type WHEN 'chargeoff' THEN 'charged_off' ELSE 'refinanced' END)
                      AS endings
               FROM journal_entry e
               JOIN journal_line l ON l.tenant_id = e.tenant_id AND l.entry_id = e.id AND l.layer = 'SETTLED'
                   AND l.direction = 'CR'
               JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code
                   AND a.role IN ('principal', 'interest', 'fees')
               WHERE e.tenant_id = %(tenant)s AND e.event_type IN ('chargeoff', 'refinance') {scope.loans_of("l.loan_id")}
                 AND NOT EXISTS (SELECT FROM reversed r WHERE r.id = e.id)
               GROUP BY l.loan_id
           )
           SELECT 'loan', json_build_object('loan_id', o.id),
                  CASE WHEN o.draws <> coalesce(s.draws, 0)
                           THEN 'says that ' || o.draws || ' entries lent principal, the journal ' || coalesce(s.draws, 0)
                       ELSE 'says ' || coalesce(o.ended_as, 'not ended') || ', the journal '
                            || coalesce(array_to_string(d.endings, ' and '), 'not ended') END
           FROM loan o
           LEFT JOIN lent s ON s.loan_id = o.id
           LEFT JOIN ended d ON d.loan_id = o.id
           WHERE o.tenant_id = %(tenant)s {scope.loans_of("o.id")}
             AND (o.draws <> coalesce(s.draws, 0)
                  OR CASE WHEN o.ended_as IS NOT NULL THEN ARRAY[o.ended_as] END IS DISTINCT FROM d.endings)""",
    )


def keys_point_to_entries(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I9. Every idempotency key's stored answer is JSON; the journal entry that it names exists, was posted when it says, and
    allocated what it says."""
    keys = "AND created_at >= %(since)s" if scope.since else ""
    lines = f"AND l.entry_id >= '{first_id(scope.since)}'" if scope.since else ""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'idempotency_key', json_build_object('key', k.key),
                  CASE WHEN k.said IS NULL THEN 'the stored answer is not JSON'
                       WHEN e.id IS NULL THEN 'there is no entry ' || (k.said ->> 'journal_entry_id')
                       WHEN a.said IS DISTINCT FROM k.allocation THEN 'says another allocation than the entry''s lines'
                       ELSE 'says that the entry was posted at ' || (k.said ->> 'posted_at') END
           FROM (SELECT key, said, CASE WHEN said -> 'allocation' IS NOT NULL THEN
                            concat_ws(' ', said -> 'allocation' ->> 'fees_minor', said -> 'allocation' ->> 'interest_minor',
                                      said -> 'allocation' ->> 'principal_minor', said -> 'allocation' ->> 'suspense_minor')
                        END AS allocation
                 FROM (SELECT key, CASE WHEN response IS JSON OBJECT THEN response::json END AS said
                       FROM idempotency_key WHERE tenant_id = %(tenant)s {keys} OFFSET 0) answer OFFSET 0) k
           LEFT JOIN journal_entry e ON e.tenant_id = %(tenant)s AND e.id::text = k.said ->> 'journal_entry_id'
           LEFT JOIN (
               SELECT l.entry_id, concat_ws(' ', coalesce(sum(l.amount_minor) FILTER (WHERE a.role = 'fees'), 0),
                                            coalesce(sum(l.amount_minor) FILTER (WHERE a.role = 'interest'), 0),
                                            coalesce(sum(l.amount_minor) FILTER (WHERE a.role = 'principal'), 0),
                                            coalesce(sum(l.amount_minor) FILTER (WHERE a.role = 'suspense'), 0)) AS said
               FROM journal_line l
               JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code
               WHERE l.tenant_id = %(tenant)s {lines} AND l.direction = 'CR'
               GROUP BY l.entry_id) a ON a.entry_id = e.id AND k.allocation IS NOT NULL
           WHERE k.said IS NULL
              OR (k.said ->> 'journal_entry_id' IS NOT NULL
                  AND (e.id IS NULL OR a.said IS DISTINCT FROM k.allocation
                       OR k.said ->> 'posted_at' <> to_char(e.posted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))""",
    )


# --- What happens once -----------------------------------------------------------------------------------------------


def reversals_mirror_once(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I6. An entry is reversed at most once, by the exact mirror of its lines, not dated before it; a reversal never is."""
    return _breaches(
        cursor,
        scope,
        f"""WITH reversal AS (
               SELECT r.id, r.event_type, r.effective_at, o.id AS of, o.event_type AS of_type,
                      o.effective_at AS of_effective_at, o.settles_entry_id IS NOT NULL AS of_settles
               FROM journal_entry r
               LEFT JOIN journal_entry o ON o.tenant_id = r.tenant_id AND o.id = r.reverses_entry_id
               WHERE r.tenant_id = %(tenant)s {scope.entries_of("r.id")}
                 AND (r.reverses_entry_id IS NOT NULL OR r.event_type IN ('reversal', 'payment_returned'))
           ), line AS (
               SELECT r.id, l.sequence, r.id = l.entry_id AS mirror,
                      row (l.account_code, (l.direction = 'DR') = (r.id = l.entry_id), l.amount_minor, l.currency, l.layer,
                           l.loan_id, l.borrower_id, l.external_ref)::text AS content
               FROM reversal r
               JOIN journal_line l ON l.tenant_id = %(tenant)s AND l.entry_id IN (r.id, r.of)
               WHERE r.event_type = 'reversal'
           )
           SELECT 'journal_entry', json_build_object('journal_entry_id', of), 'is reversed ' || count(*) || ' times'
           FROM reversal WHERE of IS NOT NULL GROUP BY of HAVING count(*) > 1
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', id),
                  CASE WHEN of IS NULL THEN 'is a ' || event_type || ' of no entry'
                       WHEN event_type NOT IN ('reversal', 'payment_returned') THEN 'is a ' || event_type || ' and reverses'
                       WHEN effective_at < of_effective_at THEN 'is dated before the entry that it reverses'
                       ELSE 'reverses a ' || of_type END
           FROM reversal
           WHERE of IS NULL OR event_type NOT IN ('reversal', 'payment_returned') OR effective_at < of_effective_at
              OR of_type IN ('reversal', 'payment_returned')
              OR (event_type = 'reversal' AND of_settles)
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', coalesce(m.id, o.id)),
                  'line ' || coalesce(m.sequence, o.sequence) || ' is not the mirror of the reversed entry''s'
           FROM (SELECT * FROM line WHERE mirror) m
           FULL JOIN (SELECT * FROM line WHERE NOT mirror) o ON o.id = m.id AND o.sequence = m.sequence
           WHERE m.content IS DISTINCT FROM o.content""",
    )


# A settlement and what it settles. A replan's entry that puts a payment back into suspense names the payment, or the
# payment's settlement, in the same way: so that it happens once.
def _settlements(scope: Scope) -> str:
    return f"""
    SELECT s.id, s.event_type, s.effective_at, o.id AS of, o.event_type AS of_type, o.effective_at AS of_effective_at,
           o.settles_entry_id IS NOT NULL AS of_settles, l.layer = 'PENDING' AND o.settles_entry_id IS NULL AS announced
    FROM journal_entry s
    LEFT JOIN journal_entry o ON o.tenant_id = s.tenant_id AND o.id = s.settles_entry_id
    LEFT JOIN journal_line l ON l.tenant_id = o.tenant_id AND l.entry_id = o.id AND l.sequence = 1
    WHERE s.tenant_id = %(tenant)s {scope.entries_of("s.id")}
      AND (s.settles_entry_id IS NOT NULL OR s.event_type = 'disbursement_settled')
"""


def settlements_settle_once(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I6. A payment or disbursement is settled at most once, not dated before it, and what is settled is not reversed as well."""
    return _breaches(
        cursor,
        scope,
        f"""WITH settlement AS ({_settlements(scope)})
           SELECT 'journal_entry', json_build_object('journal_entry_id', of), 'is settled ' || count(*) || ' times'
           FROM settlement WHERE of IS NOT NULL GROUP BY of HAVING count(*) > 1
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', id),
                  CASE WHEN of IS NULL THEN 'settles no entry'
                       WHEN effective_at < of_effective_at THEN 'is dated before the entry that it settles'
                       ELSE 'is a ' || event_type || ' and settles a ' || of_type END
           FROM settlement
           WHERE of IS NULL OR effective_at < of_effective_at
              OR NOT ((event_type, of_type) IN (('disbursement_settled', 'disbursement'),
                                                ('payment_allocated', 'payment_received'))
                      OR ((event_type, of_type) = ('payment_allocated', 'payment_allocated') AND of_settles))
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', s.of), 'is settled, and reversed by ' || r.id
           FROM settlement s
           JOIN journal_entry r ON r.tenant_id = %(tenant)s AND r.reverses_entry_id = s.of
           -- What a replan has put back into suspense the bank may still take back.
           WHERE r.event_type <> 'payment_returned' OR s.announced""",
    )


def settlements_move_what_they_settle(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """A settlement leaves nothing of the announcement on PENDING and moves its amount in cash; what puts a payment back leaves
    nothing of what the payment gave to receivables."""
    return _breaches(
        cursor,
        scope,
        f"""WITH leg AS (
               SELECT s.id, s.event_type, s.announced, a.role, l.layer, l.account_code, l.entry_id = s.id AS settling,
                      CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE -l.amount_minor END AS net
               FROM ({_settlements(scope)}) s
               CROSS JOIN LATERAL (SELECT * FROM journal_line j
                                   WHERE j.tenant_id = %(tenant)s AND j.entry_id IN (s.id, s.of) OFFSET 0) l
               JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code
           )
           SELECT 'journal_entry', json_build_object('journal_entry_id', id),
                  'leaves ' || sum(net) || ' of account ' || account_code || ' on ' || layer
           FROM leg
           WHERE CASE WHEN announced THEN layer = 'PENDING'
                      ELSE event_type = 'payment_allocated' AND layer = 'SETTLED' AND role IN ('principal', 'interest', 'fees')
                 END
           GROUP BY id, account_code, layer HAVING sum(net) <> 0
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', id),
                  'moves ' || coalesce(sum(net) FILTER (WHERE settling AND role = 'cash'), 0) || ' in cash'
           FROM leg
           WHERE announced OR event_type = 'disbursement_settled'
           GROUP BY id
           HAVING sum(net) FILTER (WHERE settling AND role = 'cash') IS DISTINCT FROM
                  sum(CASE role WHEN 'payment_clearing' THEN net WHEN 'principal' THEN -net END) FILTER (WHERE NOT settling)""",
    )


def returns_give_back_what_came(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """A return names a payment or its settlement and gives all of its cash back; of an allocation from suspense that is in
    force no more is taken back than it allocated, and as much as the return says."""
    return _breaches(
        cursor,
        scope,
        f"""WITH returned AS (
               SELECT r.id, r.loan_id, r.facts, o.id AS of, o.event_type AS of_type, o.settles_entry_id, o.loan_id AS of_loan_id
               FROM journal_entry r
               LEFT JOIN journal_entry o ON o.tenant_id = r.tenant_id AND o.id = r.reverses_entry_id
               WHERE r.tenant_id = %(tenant)s {scope.entries_of("r.id")} AND r.event_type = 'payment_returned'
           ), leg AS (
               SELECT r.id, l.entry_id = r.id AS giving, a.role, l.layer, l.direction,
                      CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE -l.amount_minor END AS net
               FROM returned r
               CROSS JOIN LATERAL (SELECT * FROM journal_line j
                                   WHERE j.tenant_id = %(tenant)s AND j.entry_id IN (r.id, r.of) OFFSET 0) l
               JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code
               -- A settlement's first lines are the end of the announcement, no money.
               WHERE a.role = 'suspense' OR a.role = 'cash'
                  OR (a.role = 'payment_clearing' AND r.of_type = 'payment_received')
           ), undone AS (
               SELECT r.id, r.loan_id, u.key AS allocation_id, u.value::bigint AS minor
               FROM returned r CROSS JOIN LATERAL jsonb_each_text(r.facts -> 'undone') u
           )
           SELECT 'journal_entry', json_build_object('journal_entry_id', id), 'returns a ' || coalesce(of_type, 'nothing')
           FROM returned
           WHERE loan_id IS DISTINCT FROM of_loan_id
              OR NOT coalesce(of_type = 'payment_received'
                              OR (of_type = 'payment_allocated' AND settles_entry_id IS NOT NULL), false)
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', id), 'keeps ' || sum(net) || ' of the cash'
           FROM leg WHERE role <> 'suspense' GROUP BY id HAVING sum(net) <> 0
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', id),
                  'takes back ' || sum(posted) || ' of allocations, and says ' || sum(said)
           FROM (SELECT id, -net AS posted, 0 AS said
                 FROM leg WHERE giving AND role = 'suspense' AND direction = 'CR' AND layer = 'SETTLED'
                 UNION ALL
                 SELECT id, 0, minor FROM undone) both_sides
           GROUP BY id HAVING sum(posted) <> sum(said)
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', u.allocation_id),
                  'is taken back by ' || sum(u.minor) || ' and is no allocation of so much that is in force'
           FROM undone u
           LEFT JOIN journal_entry e ON e.tenant_id = %(tenant)s AND e.id::text = u.allocation_id AND e.loan_id = u.loan_id
               AND e.event_type = 'payment_allocated' AND e.settles_entry_id IS NULL
               AND NOT EXISTS (SELECT FROM journal_entry x WHERE x.tenant_id = e.tenant_id AND x.reverses_entry_id = e.id)
           LEFT JOIN journal_line l ON l.tenant_id = e.tenant_id AND l.entry_id = e.id AND l.direction = 'DR'
           GROUP BY u.allocation_id HAVING min(l.amount_minor) IS NULL OR sum(u.minor) > min(l.amount_minor)""",
    )


def closed_periods_stay_as_they_were(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """The trial balances that were kept when a period was closed are still what the lines dated in it sum to."""
    lines = """SELECT p.through_date, d.currency, d.layer, d.account_code AS code, sum(d.dr) AS dr, sum(d.cr) AS cr
               FROM period p JOIN day d ON d.effective_at <= p.through_date GROUP BY 1, 2, 3, 4"""
    sums = """SELECT p.through_date, b.currency, b.layer, s.account_code AS code, s.dr_minor AS dr, s.cr_minor AS cr
              FROM period p
              CROSS JOIN account_books(%(tenant)s) b
              CROSS JOIN LATERAL account_balances(%(tenant)s, b.currency, b.layer, p.through_date, NULL) s"""
    return _breaches(
        cursor,
        scope,
        f"""WITH period AS (
               SELECT through_date, CASE WHEN trial_balances IS JSON ARRAY THEN trial_balances::jsonb ELSE '[]' END AS kept
               FROM period_close WHERE tenant_id = %(tenant)s
           ), kept AS (
               SELECT p.through_date, b ->> 'currency' AS currency, b ->> 'layer' AS layer, a ->> 'account_code' AS code,
                      (a ->> 'dr_balance_minor')::numeric AS dr, (a ->> 'cr_balance_minor')::numeric AS cr
               FROM period p
               CROSS JOIN LATERAL jsonb_array_elements(p.kept) b
               CROSS JOIN LATERAL jsonb_array_elements(b -> 'accounts') a
           ), day AS (
               SELECT effective_at, currency, layer, account_code,
                      coalesce(sum(amount_minor) FILTER (WHERE direction = 'DR'), 0) AS dr,
                      coalesce(sum(amount_minor) FILTER (WHERE direction = 'CR'), 0) AS cr
               FROM journal_line WHERE tenant_id = %(tenant)s GROUP BY 1, 2, 3, 4
           ), posted AS ({lines if scope.is_everything else sums})
           SELECT 'period_close', json_build_object('through_date', through_date),
                  'kept ' || coalesce(k.dr, 0) || ' and ' || coalesce(k.cr, 0) || ' ' || currency || ' of account ' || code
                  || ' on ' || layer || ', the lines sum to ' || coalesce(l.dr, 0) || ' and ' || coalesce(l.cr, 0)
           FROM kept k
           FULL JOIN posted l USING (through_date, currency, layer, code)
           WHERE (coalesce(k.dr, 0), coalesce(k.cr, 0)) <> (coalesce(l.dr, 0), coalesce(l.cr, 0))
           UNION ALL
           SELECT 'period_close', json_build_object('through_date', p.through_date), 'the totals kept are not its accounts'
           FROM period p
           CROSS JOIN LATERAL jsonb_array_elements(p.kept) b
           CROSS JOIN LATERAL (SELECT sum((a ->> 'dr_balance_minor')::numeric) AS dr,
                                      sum((a ->> 'cr_balance_minor')::numeric) AS cr
                               FROM jsonb_array_elements(b -> 'accounts') a) s
           WHERE ((b ->> 'total_dr_minor')::numeric, (b ->> 'total_cr_minor')::numeric) IS DISTINCT FROM (s.dr, s.cr)""",
    )


def accruals_are_live_once(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I7. A loan has one accrual per date that is not reversed; each is of its entry, on its date, with that entry's interest.

    That is its income: what a correction takes beyond the interest owed is the borrower's."""
    return _breaches(
        cursor,
        scope,
        f"""WITH reversed AS MATERIALIZED (
               SELECT reverses_entry_id AS id FROM journal_entry WHERE tenant_id = %(tenant)s AND reverses_entry_id IS NOT NULL
           ), entry AS MATERIALIZED (
               SELECT id, event_type, effective_at FROM journal_entry e
               WHERE tenant_id = %(tenant)s AND event_type = 'accrual' {scope.dates_of("effective_at")}
           ), counted AS (
               SELECT a.loan_id, a.accrual_date, count(*) FILTER (WHERE r.id IS NULL) AS live, count(*) AS revisions,
                      min(a.revision) AS first, max(a.revision) AS last
               FROM loan_accrual a LEFT JOIN reversed r ON r.id = a.entry_id
               WHERE a.tenant_id = %(tenant)s {scope.loans_of("a.loan_id")} {scope.dates_of("a.accrual_date")}
               GROUP BY a.loan_id, a.accrual_date
           )
           SELECT 'loan_accrual', json_build_object('loan_id', loan_id, 'accrual_date', accrual_date),
                  CASE WHEN live > 1 THEN 'has ' || live || ' accruals that are not reversed'
                       ELSE 'has ' || revisions || ' revisions, numbered ' || first || ' to ' || last END
           FROM counted WHERE live > 1 OR first <> 0 OR last <> revisions - 1
           UNION ALL
           SELECT 'loan_accrual',
                  json_build_object('loan_id', a.loan_id, 'accrual_date', a.accrual_date, 'revision', a.revision),
                  coalesce((SELECT 'is of a ' || e.event_type || ' effective on ' || e.effective_at FROM journal_entry e
                            WHERE e.tenant_id = a.tenant_id AND e.id = a.entry_id), 'there is no entry ' || a.entry_id)
           FROM loan_accrual a LEFT JOIN entry e ON e.id = a.entry_id AND e.effective_at = a.accrual_date
           WHERE a.tenant_id = %(tenant)s {scope.loans_of("a.loan_id")} {scope.dates_of("a.accrual_date")} AND e.id IS NULL
           UNION ALL
           SELECT 'loan_accrual', json_build_object('loan_id', loan_id, 'journal_entry_id', entry_id),
                  'says ' || coalesce(sum(said)::text, 'nothing') || ', the entry posts ' || coalesce(sum(posted), 0)
           FROM (SELECT loan_id, entry_id, interest_minor AS said, NULL AS posted FROM loan_accrual
                 WHERE tenant_id = %(tenant)s {scope.loans_of("loan_id")} {scope.dates_of("accrual_date")}
                 UNION ALL
                 SELECT l.loan_id, l.entry_id, NULL,
                        CASE l.direction WHEN a.normal_side THEN l.amount_minor ELSE -l.amount_minor END
                 FROM journal_line l
                 JOIN entry e ON e.id = l.entry_id
                 JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.role = 'interest_income'
                 WHERE l.tenant_id = %(tenant)s {scope.loans_of("l.loan_id")}) both_sides
           GROUP BY loan_id, entry_id
           HAVING sum(said) IS DISTINCT FROM coalesce(sum(posted), 0)""",
    )


def interest_is_posted_once(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """What a loan says that the engine has posted of its interest is what is in force: accruals of runs, and what came with a
    charge-off or a refinance. A reversed accrual has paused its days."""
    return _breaches(
        cursor,
        scope,
        f"""WITH reversed AS (
               SELECT reverses_entry_id AS id FROM journal_entry WHERE tenant_id = %(tenant)s AND event_type = 'reversal'
           ), posted AS (
               SELECT loan_id, interest_minor AS minor FROM loan_accrual
               WHERE tenant_id = %(tenant)s {scope.loans_of("loan_id")} AND since IS NOT NULL
                 AND entry_id NOT IN (SELECT id FROM reversed WHERE id IS NOT NULL)
               UNION ALL
               SELECT l.loan_id, CASE l.direction WHEN 'CR' THEN l.amount_minor ELSE -l.amount_minor END
               FROM journal_entry e
               JOIN journal_line l ON l.tenant_id = e.tenant_id AND l.entry_id = e.id
               JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.role = 'interest_income'
               WHERE e.tenant_id = %(tenant)s AND e.event_type IN ('chargeoff', 'refinance') {scope.loans_of("l.loan_id")}
                 AND e.id NOT IN (SELECT id FROM reversed)
           )
           SELECT 'loan', json_build_object('loan_id', o.id),
                  'says that ' || o.interest_posted_minor || ' of its interest is posted, the journal ' || coalesce(p.minor, 0)
           FROM loan o
           LEFT JOIN (SELECT loan_id, sum(minor) AS minor FROM posted GROUP BY loan_id) p ON p.loan_id = o.id
           WHERE o.tenant_id = %(tenant)s {scope.loans_of("o.id")} AND o.interest_posted_minor <> coalesce(p.minor, 0)
           UNION ALL
           SELECT 'accrual_pause', json_build_object('loan_id', coalesce(p.loan_id, x.loan_id), 'id', p.id),
                  CASE WHEN p.id IS NULL THEN 'the accrual of ' || x.accrual_date || ' is reversed and its days earn'
                       ELSE 'no accrual of ' || p.to_date || ' with these days is reversed' END
           FROM (SELECT * FROM accrual_pause
                 WHERE tenant_id = %(tenant)s {scope.loans_of("loan_id")} AND reversed_revision IS NOT NULL) p
           FULL JOIN (SELECT * FROM loan_accrual WHERE tenant_id = %(tenant)s {scope.loans_of("loan_id")} AND since IS NOT NULL
                                                   AND entry_id IN (SELECT id FROM reversed)) x
               ON x.loan_id = p.loan_id AND x.accrual_date = p.to_date AND x.revision = p.reversed_revision
                  AND x.since + 1 = p.from_date
           WHERE p.id IS NULL OR x.loan_id IS NULL""",
    )


def interest_is_exact(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """What the engine has counted of a loan's interest is what the lines and terms that it knew then give, counted anew from the
    opening. A loan whose terms have changed behind that date waits for the next run, and is passed over.

    What a minor unit has earned from one date to another is the same for most loans, and is worked out once for all of them.
    """
    return _breaches(
        cursor,
        scope,
        f"""WITH known AS MATERIALIZED (
               SELECT d.program_id, d.day, t.terms, terms_known(t.terms, d.day) AS said
               FROM (SELECT DISTINCT program_id, accrued_through AS day
                     FROM loan WHERE tenant_id = %(tenant)s AND accrued_terms IS NOT NULL {scope.loans_of("id")}) d
               JOIN (SELECT id, interest_terms(tenant_id, id, NULL, NULL) AS terms
                     FROM program WHERE tenant_id = %(tenant)s) t ON t.id = d.program_id
           ), own AS MATERIALIZED (
               SELECT t.loan_id, string_agg(concat_ws(' ', t.id, t.effective_at), ',' ORDER BY t.id) AS said,
                      min(t.annual_rate_bps) AS rate, min(t.effective_at) AS since,
                      -- One row that says the rate, and nothing else: the loan's own rate since it was opened.
                      count(*) = 1 AND min(t.annual_rate_bps) IS NOT NULL AND min(t.day_count_convention) IS NULL AS plain
               FROM loan_terms t
               WHERE t.tenant_id = %(tenant)s {scope.loans_of("t.loan_id")}
                 AND NOT EXISTS (SELECT FROM journal_entry r
                                 WHERE r.tenant_id = t.tenant_id AND r.reverses_entry_id = t.entry_id)
               GROUP BY t.loan_id
           ), pause AS MATERIALIZED (
               SELECT d.loan_id, string_agg(concat_ws(' ', p.id, p.from_date), ',' ORDER BY p.id) AS said
               FROM (SELECT DISTINCT loan_id FROM accrual_pause
                     WHERE tenant_id = %(tenant)s {scope.loans_of("loan_id")}) d
               CROSS JOIN LATERAL accrual_pauses(%(tenant)s, d.loan_id, d.loan_id, NULL) p
               GROUP BY d.loan_id
           ), counted AS MATERIALIZED (
               -- Whose terms are its program's, but for the rate perhaps; or all its own, which cost more to put together.
               SELECT o.id, o.program_id, o.opened_on, o.accrued_through, o.accrued_version, o.interest_exact,
                      coalesce(CASE WHEN f.plain THEN own.rate END, -1) AS rate,
                      CASE WHEN f.plain THEN o.program_id ELSE o.id END AS terms_of
               FROM loan o
               JOIN known ON known.program_id = o.program_id AND known.day = o.accrued_through
               LEFT JOIN own ON own.loan_id = o.id
               LEFT JOIN pause ON pause.loan_id = o.id
               CROSS JOIN LATERAL (
                   SELECT pause.said IS NULL AND (own.said IS NULL OR (own.plain AND own.since <= o.opened_on)) AS plain) f
               WHERE o.tenant_id = %(tenant)s {scope.loans_of("o.id")}
                 AND o.accrued_terms = hashtextextended(
                     concat_ws(' ', known.said, nullif(concat_ws(' ', own.said, pause.said), '')), 0)
           ), terms AS MATERIALIZED (
               SELECT DISTINCT ON (program_id) program_id AS terms_of, terms FROM known
               UNION ALL
               SELECT id, interest_terms(%(tenant)s, program_id, id, NULL) FROM counted WHERE terms_of = id
           ), principal AS MATERIALIZED (
               SELECT j.loan_id, j.loan_version, j.effective_at,
                      CASE j.direction WHEN 'DR' THEN j.amount_minor ELSE -j.amount_minor END AS net
               FROM journal_line j
               WHERE j.tenant_id = %(tenant)s AND j.loan_id IS NOT NULL AND j.layer = 'SETTLED' {scope.loans_of("j.loan_id")}
                 AND j.account_code = (SELECT code FROM gl_account WHERE tenant_id = %(tenant)s AND role = 'principal')
           ), moved AS MATERIALIZED (
               SELECT c.*, c.opened_on AS day, 0::numeric AS net FROM counted c
               UNION ALL
               SELECT c.*, least(j.effective_at, c.accrued_through), j.net
               FROM principal j
               JOIN counted c ON c.id = j.loan_id AND c.accrued_version >= j.loan_version
           ), earned AS MATERIALIZED (
               SELECT d.*, interest_between(t.terms, d.opened_on, d.day, d.accrued_through, nullif(d.rate, -1), NULL) AS earned
               FROM (SELECT DISTINCT terms_of, rate, opened_on, day, accrued_through FROM moved) d
               JOIN terms t ON t.terms_of = d.terms_of
           ), exact AS (
               SELECT m.id, m.interest_exact, m.accrued_through,
                      CASE WHEN bool_and(e.earned IS NOT NULL) THEN sum(m.net * e.earned) END AS exact
               FROM moved m
               JOIN earned e ON e.terms_of = m.terms_of AND e.rate = m.rate AND e.opened_on = m.opened_on AND e.day = m.day
                   AND e.accrued_through = m.accrued_through
               GROUP BY m.id, m.interest_exact, m.accrued_through
           )
           SELECT 'loan', json_build_object('loan_id', c.id),
                  'counts ' || c.interest_exact || ' of interest through ' || c.accrued_through || ', its lines and terms give '
                  || coalesce(c.exact::text, 'nothing')
           FROM exact c
           WHERE c.interest_exact IS DISTINCT FROM c.exact""",
    )


def accrual_runs_add_up(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """A run's chunks lie side by side and cover every id; their figures are those of its entries; it ends when all are done."""
    # A run's figures are its entries', wherever these are: to be summed when everything is.
    runs = f"""AND c.run_id IN (SELECT id FROM accrual_run
                           WHERE tenant_id = %(tenant)s {scope.dates_of("accrual_date")})"""
    return _breaches(
        cursor,
        scope,
        f"""WITH chunk AS (
               SELECT c.*, lag(c.through_id) OVER w AS before_id, row_number() OVER w AS place,
                      count(*) OVER (PARTITION BY run_id) AS n
               FROM accrual_chunk c WHERE c.tenant_id = %(tenant)s {runs}
               WINDOW w AS (PARTITION BY c.run_id ORDER BY c.after_id NULLS FIRST)
           ), figure AS (
               SELECT r.id, coalesce(sum(c.total_minor), 0) AS total, coalesce(sum(c.accrued_count), 0) AS accrued,
                      count(c.number) AS chunks, count(c.done_at) AS done
               FROM accrual_run r LEFT JOIN chunk c ON c.run_id = r.id
               WHERE r.tenant_id = %(tenant)s {runs.replace("c.run_id", "r.id")} GROUP BY r.id
           ), posted AS (
               SELECT (e.facts ->> 'accrual_run_id')::uuid AS run_id, sum(x.interest_minor) AS total, count(*) AS accrued
               FROM journal_entry e
               JOIN loan_accrual x ON x.tenant_id = e.tenant_id AND x.entry_id = e.id
               WHERE e.tenant_id = %(tenant)s AND e.event_type = 'accrual' AND e.facts ? 'accrual_run_id'
               GROUP BY 1
           )
           SELECT 'accrual_chunk', json_build_object('accrual_run_id', run_id, 'number', number),
                  'does not begin where the one before it ends'
           FROM chunk
           WHERE after_id IS DISTINCT FROM before_id OR (through_id IS NULL) <> (place = n)
           UNION ALL
           SELECT 'accrual_run', json_build_object('accrual_run_id', coalesce(f.id, p.run_id)),
                  CASE WHEN f.id IS NULL THEN 'there is no such run, and entries of it'
                       ELSE 'says ' || f.total || ' for ' || f.accrued || ' loans, its entries ' || coalesce(p.total, 0)
                            || ' for ' || coalesce(p.accrued, 0) END
           FROM figure f
           FULL JOIN posted p ON p.run_id = f.id
           WHERE {"true" if scope.is_everything else "false"}
             AND (f.id IS NULL OR (f.total, f.accrued) <> (coalesce(p.total, 0), coalesce(p.accrued, 0)))
           UNION ALL
           SELECT 'accrual_run', json_build_object('accrual_run_id', r.id), 'has ended before its chunks'
           FROM accrual_run r JOIN figure f ON f.id = r.id
           WHERE r.tenant_id = %(tenant)s {runs.replace("c.run_id", "r.id")}
             AND r.finished_at IS NOT NULL AND (f.chunks = 0 OR f.done < f.chunks)
           UNION ALL
           SELECT 'accrual_exception', json_build_object('accrual_run_id', x.run_id, 'loan_id', x.loan_id),
                  'is of no loan of the run''s program'
           FROM accrual_exception x
           LEFT JOIN accrual_run r ON r.tenant_id = x.tenant_id AND r.id = x.run_id
           LEFT JOIN loan o ON o.tenant_id = x.tenant_id AND o.id = x.loan_id AND o.program_id = r.program_id
           WHERE x.tenant_id = %(tenant)s {runs.replace("c.run_id", "x.run_id")} AND o.id IS NULL""",
    )


def corrections_of_staff_are_approved(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """A reversal or an adjustment in the name of a person has a proposal that somebody else made and this person approved; and
    each approval has its entry."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'journal_entry', json_build_object('id', e.id),
                   'is a correction by ' || said.actor || ' that nobody else proposed'
            FROM (SELECT * FROM journal_entry e
                  WHERE e.tenant_id = %(tenant)s AND e.event_type IN ('reversal', 'manual_adjustment')
                    AND e.document LIKE '{{"actor":"staff:%%' {scope.entries_of("e.id")}) e
            CROSS JOIN LATERAL (SELECT e.document::jsonb->>'actor' AS actor) said
            WHERE NOT EXISTS (
                SELECT FROM proposal_decision d JOIN proposal p ON p.tenant_id = d.tenant_id AND p.id = d.proposal_id
                WHERE d.tenant_id = e.tenant_id AND d.entry_id = e.id AND d.decision = 'approved'
                  AND d.decided_by = said.actor AND d.maker = p.maker AND p.maker <> d.decided_by)
            UNION ALL
            SELECT 'proposal_decision', json_build_object('proposal_id', d.proposal_id),
                   CASE WHEN p.id IS NULL THEN 'decides a proposal that is not there'
                        ELSE 'approved an entry that is not there' END
            FROM proposal_decision d
            LEFT JOIN proposal p ON p.tenant_id = d.tenant_id AND p.id = d.proposal_id
            LEFT JOIN journal_entry e ON e.tenant_id = d.tenant_id AND e.id = d.entry_id
            WHERE d.tenant_id = %(tenant)s AND (p.id IS NULL OR (d.decision = 'approved' AND e.id IS NULL))""",
    )


def outbox_has_each_entry_once(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I8. Every entry has exactly one outbox message, written by its own transaction. Its latest are found by their ids, which
    begin with the time of posting: an entry without a message is nowhere in the order of the outbox."""
    entries = f"AND e.id >= '{first_id(scope.since)}'" if scope.since else ""
    messages = (
        f"AND (m.created_xid, m.entry_id) > ('{scope.after[0]}'::xid8, '{scope.after[1]}')" if scope.after else ""
    )
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'outbox_message', json_build_object('journal_entry_id', e.id), 'its transaction wrote none for the entry'
           FROM journal_entry e
           LEFT JOIN outbox_message m ON m.tenant_id = e.tenant_id AND m.created_xid = e.created_xid AND m.entry_id = e.id
           WHERE e.tenant_id = %(tenant)s {entries} AND m.entry_id IS NULL
           UNION ALL
           SELECT 'outbox_message', json_build_object('journal_entry_id', m.entry_id),
                  CASE WHEN e.id IS NULL THEN 'there is no such entry' ELSE 'another transaction wrote it' END
           FROM outbox_message m
           LEFT JOIN journal_entry e ON e.tenant_id = m.tenant_id AND e.id = m.entry_id
           WHERE m.tenant_id = %(tenant)s {messages} AND e.created_xid IS DISTINCT FROM m.created_xid""",
    )


def versions_have_no_gap(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """I12. The entries of a loan are numbered 1..n by its version, one each; the loan knows n and its last dates."""
    return _breaches(
        cursor,
        scope,
        f"""SELECT 'loan', json_build_object('loan_id', o.id),
                  CASE WHEN l.entries IS NULL THEN 'is at version ' || o.version || ' and has no entry'
                       WHEN NOT l.in_order THEN 'has ' || l.entries || ' entries, not numbered 1 to ' || l.entries
                       WHEN l.entries <> o.version
                           THEN 'is at version ' || o.version || ', its last entry at ' || l.entries
                       ELSE 'does not remember when it moved last' END
           FROM loan o
           LEFT JOIN (
               SELECT loan_id, count(*) AS entries, bool_and(first = number AND last = number) AS in_order,
                      max(effective_at) AS effective_at, max(entry_id) FILTER (WHERE latest) AS last_entry_id
               FROM (SELECT loan_id, entry_id::text COLLATE "C" AS entry_id, min(loan_version) AS first,
                            max(loan_version) AS last, max(effective_at) AS effective_at,
                            row_number() OVER (PARTITION BY loan_id ORDER BY max(loan_version)) AS number,
                            lead(entry_id) OVER (PARTITION BY loan_id ORDER BY max(loan_version)) IS NULL AS latest
                     FROM journal_line
                     WHERE tenant_id = %(tenant)s AND loan_id IS NOT NULL {scope.loans_of("loan_id")}
                     GROUP BY loan_id, entry_id) p
               GROUP BY loan_id) l ON l.loan_id = o.id
           LEFT JOIN journal_entry e ON e.tenant_id = o.tenant_id AND e.id = l.last_entry_id::uuid
           WHERE o.tenant_id = %(tenant)s {scope.loans_of("o.id")}
             AND (o.version <> coalesce(l.entries, 0) OR l.in_order IS FALSE
                  OR o.last_effective_at IS DISTINCT FROM l.effective_at OR o.last_posted_at IS DISTINCT FROM e.posted_at)""",
    )


# --- Sealed history --------------------------------------------------------------------------------------------------

_BLOCKS = """
    SELECT s.*, lag(s.number, 1, 0::bigint) OVER w AS before,
           lag(s.hash, 1, decode(repeat('00', 32), 'hex')) OVER w AS before_hash,
           lag(s.signature) OVER w AS before_signature, lag(s.last_xid, 1, '0'::xid8) OVER w AS after_xid,
           lag(s.last_entry_id, 1, '00000000-0000-0000-0000-000000000000'::uuid) OVER w AS after_entry_id
    FROM journal_seal s WHERE s.tenant_id = %(tenant)s WINDOW w AS (ORDER BY s.number)
"""


def sealed_history_holds(cursor: CursorWrapper, scope: Scope = EVERYTHING) -> list[Breach]:
    """Every block follows the one before it, its hash and signature are its own, and its entries are, byte for byte and in order,
    those that were sealed. (That the last blocks are still there, only a head that was kept elsewhere can say.)

    Blocks and what they seal never change, so that it need not be one statement. A scope has the blocks that hold an entry behind
    its point."""
    params = {"tenant": current_tenant()}
    new = "true"
    if scope.after is not None:
        new = "(s.last_xid, s.last_entry_id) > (%(xid)s::xid8, %(entry)s::uuid)"
        params |= {"xid": scope.after[0], "entry": scope.after[1]}
    cursor.execute(
        f"""SELECT number, fault, moved, leaves, after_xid, after_entry_id, last_xid, last_entry_id
            FROM (SELECT number, leaves, after_xid::text, after_entry_id::text, last_xid::text, last_entry_id::text,
                         CASE WHEN number <> before + 1 THEN 'block ' || before + 1 || ' is missing before it'
                              WHEN previous_hash <> before_hash THEN 'does not have the hash of the block before it'
                              WHEN merkle_root <> merkle_root(leaves) THEN 'its leaves do not have its root'
                              WHEN length(leaves) <> entry_count * 32 THEN 'says ' || entry_count || ' entries, has '
                                                                           || length(leaves) / 32 || ' leaves'
                              WHEN hash <> seal_hash(tenant_id, number, entry_count, merkle_root, previous_hash)
                                  THEN 'its hash is not that of what it says'
                              WHEN signature IS NULL AND before_signature IS NOT NULL
                                  THEN 'is not signed, and the block before it is' END AS fault,
                         seal_leaves(tenant_id, after_xid, after_entry_id, last_xid, last_entry_id) <> leaves AS moved
                  FROM ({_BLOCKS}) s WHERE {new}) judged
            WHERE fault IS NOT NULL OR moved ORDER BY number LIMIT {NAMED}""",
        params,
    )
    found = []
    for number, fault, moved, leaves, *places in cursor.fetchall():
        if fault is not None:
            found.append(Breach("journal_seal", {"number": number}, fault))
        if moved:
            found += _moved_entries(cursor, number, bytes(leaves), places)
    cursor.execute(
        f"SELECT coalesce(min(s.number), 0) FROM journal_seal s WHERE s.tenant_id = %(tenant)s AND {new}", params
    )
    ((first,),) = cursor.fetchall()
    return (found + _forged_signatures(cursor, first))[:NAMED]


def heads_are_kept(cursor: CursorWrapper, heads: dict[int, str]) -> list[Breach]:
    """Blocks that somebody has kept, number and hash, which are not there any more or have another hash.

    No promise that the rows could prove by themselves, and so not one of CHECKS: who can rewrite all of them is caught here."""
    cursor.execute(
        """SELECT number, encode(hash, 'hex') FROM journal_seal WHERE tenant_id = %s AND number = ANY (%s)""",
        (current_tenant(), list(heads)),
    )
    there = dict(cursor.fetchall())
    wrong = [number for number in sorted(heads) if there.get(number) != heads[number]]
    return [
        Breach(
            "journal_seal",
            {"number": number},
            "is gone, and was kept elsewhere" if number not in there else "has another hash than was kept elsewhere",
        )
        for number in wrong[:NAMED]
    ]


def _moved_entries(cursor: CursorWrapper, number: int, sealed: bytes, places: list[str]) -> list[Breach]:
    """Where a block and the journal differ: entries that are not what was sealed, leaves whose entry is gone, another order."""
    cursor.execute(
        """SELECT o.entry_id::text, sha256('\\x00'::bytea || convert_to(e.document, 'UTF8'))
           FROM outbox_message o JOIN journal_entry e ON e.tenant_id = o.tenant_id AND e.id = o.entry_id
           WHERE o.tenant_id = %s AND (o.created_xid, o.entry_id) > (%s::xid8, %s::uuid)
             AND (o.created_xid, o.entry_id) <= (%s::xid8, %s::uuid)
           ORDER BY o.created_xid, o.entry_id""",
        [current_tenant(), *places],
    )
    present = [(entry_id, bytes(leaf)) for entry_id, leaf in cursor.fetchall()]
    leaves = [sealed[at : at + 32] for at in range(0, len(sealed), 32)]
    known, kept = set(leaves), {leaf for _, leaf in present}
    strange = [entry_id for entry_id, leaf in present if leaf not in known]
    gone = [index for index, leaf in enumerate(leaves) if leaf not in kept]
    found = [
        Breach("journal_entry", {"journal_entry_id": entry_id, "block": number}, "is not what was sealed")
        for entry_id in strange[:NAMED]
    ]
    # An entry that has changed leaves its old leaf behind: only what is missing beyond those is gone.
    if len(gone) > len(strange):
        found += [
            Breach("journal_seal", {"number": number, "leaf_index": index}, "the entry that was sealed here is gone")
            for index in gone[:NAMED]
        ]
    if not found:
        entry_id = next((entry for (entry, own), leaf in zip(present, leaves, strict=False) if own != leaf), None)
        row = {"number": number, "journal_entry_id": entry_id}
        found.append(Breach("journal_seal", row, "its entries are not in the order in which they were sealed"))
    return found


def _forged_signatures(cursor: CursorWrapper, first: int) -> list[Breach]:
    """The first blocks from one on whose signature does not verify."""
    keys, found, last = seal_keys(), list[Breach](), first - 1
    while len(found) < NAMED:
        cursor.execute(
            """SELECT number, hash, key_id, signature FROM journal_seal
               WHERE tenant_id = %s AND number > %s AND signature IS NOT NULL ORDER BY number LIMIT 10000""",
            (current_tenant(), last),
        )
        rows = cursor.fetchall()
        if not rows:
            break
        for last, own_hash, key_id, signature in rows:
            fault = keys.fault(bytes(own_hash), key_id, bytes(signature))
            if fault is not None:
                found.append(Breach("journal_seal", {"number": last}, fault))
    return found


CHECKS: tuple[Check, ...] = (
    entries_are_whole,
    entries_balance,
    trial_balance_is_zero,
    documents_match_rows,
    balances_match_lines,
    control_accounts_match_loans,
    account_sums_match_lines,
    no_balance_was_ever_below_zero,
    lines_belong_together,
    entries_belong_together,
    balances_belong_together,
    terms_belong_together,
    loans_stand_as_the_journal_says,
    keys_point_to_entries,
    reversals_mirror_once,
    settlements_settle_once,
    settlements_move_what_they_settle,
    returns_give_back_what_came,
    closed_periods_stay_as_they_were,
    accruals_are_live_once,
    interest_is_posted_once,
    interest_is_exact,
    accrual_runs_add_up,
    corrections_of_staff_are_approved,
    outbox_has_each_entry_once,
    versions_have_no_gap,
    sealed_history_holds,
)

# Those that no entry leads to: once for a proof, and not for each of its parts.
ONCE = frozenset(
    {
        control_accounts_match_loans,
        account_sums_match_lines,
        closed_periods_stay_as_they_were,
        keys_point_to_entries,
        outbox_has_each_entry_once,
        sealed_history_holds,
    }
)
