"""The promises of the books, each proven by one reading of one tenant's rows: a flat list of checks.

A check takes the cursor of a `tenant_transaction()` and answers the first rows that break its promise; none means kept. Each is a
single statement and so looks at a single moment: postings may go on while it runs. Nothing here writes, and nothing here
trusts what the write path computed: documents are rebuilt by PostgreSQL, balances are summed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant
from ledger.balances import BALANCE_DIFFERENCES

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


Check = Callable[[CursorWrapper], list[Breach]]


def _breaches(cursor: CursorWrapper, sql: str) -> list[Breach]:
    """The first rows of a statement that answers (table, key as JSON, problem)."""
    cursor.execute(
        f"SELECT bad.tbl, bad.key::text, bad.problem FROM ({sql}) AS bad (tbl, key, problem) ORDER BY 1, 2 LIMIT {NAMED}",
        {"tenant": current_tenant()},
    )
    return [Breach(table, json.loads(key), problem) for table, key, problem in cursor.fetchall()]


# --- The journal -----------------------------------------------------------------------------------------------------


def entries_are_whole(cursor: CursorWrapper) -> list[Breach]:
    """I1. Every entry has at least two lines, numbered from 1 without a gap, as many as it says."""
    return _breaches(
        cursor,
        """SELECT 'journal_entry', json_build_object('journal_entry_id', e.id),
                  'says ' || e.line_count || ' lines, has ' || coalesce(l.lines, 0)
                  || coalesce(', numbered ' || l.first || ' to ' || l.last, '')
           FROM journal_entry e
           LEFT JOIN (SELECT entry_id, count(*) AS lines, min(sequence) AS first, max(sequence) AS last
                      FROM journal_line WHERE tenant_id = %(tenant)s GROUP BY entry_id) l ON l.entry_id = e.id
           WHERE e.tenant_id = %(tenant)s
             AND (l.lines IS NULL OR l.lines < 2 OR l.lines <> e.line_count OR l.first <> 1 OR l.last <> l.lines)""",
    )


def entries_balance(cursor: CursorWrapper) -> list[Breach]:
    """I2. Debits equal credits in every entry, currency and layer."""
    return _breaches(
        cursor,
        """SELECT 'journal_entry', json_build_object('journal_entry_id', entry_id),
                  'debits minus credits are ' || sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END)
                  || ' ' || currency || ' on ' || layer
           FROM journal_line WHERE tenant_id = %(tenant)s
           GROUP BY entry_id, currency, layer
           HAVING sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END) <> 0""",
    )


def trial_balance_is_zero(cursor: CursorWrapper) -> list[Breach]:
    """I3. Over the accounts of the chart, debits equal credits in every currency and layer."""
    return _breaches(
        cursor,
        """SELECT 'journal_line', json_build_object('currency', s.currency, 'layer', s.layer),
                  'the trial balance is off by ' || sum(s.net)
           FROM (SELECT account_code, currency, layer,
                        sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END) AS net
                 FROM journal_line WHERE tenant_id = %(tenant)s GROUP BY account_code, currency, layer) s
           JOIN gl_account a ON a.tenant_id = %(tenant)s AND a.code = s.account_code
           GROUP BY s.currency, s.layer
           HAVING sum(s.net) <> 0""",
    )


def documents_match_rows(cursor: CursorWrapper) -> list[Breach]:
    """Every entry's document is, byte for byte, what its row and its lines say. Only actor and description stand in it alone."""
    return _breaches(
        cursor,
        """WITH line AS (
               SELECT entry_id, string_agg(
                   '{"account_code":' || to_json(account_code) || ',"amount_minor":"' || amount_minor || '"'
                   || coalesce(',"borrower_id":"' || borrower_id || '"', '') || ',"currency":' || to_json(currency)
                   || ',"direction":' || to_json(direction) || coalesce(',"external_ref":' || to_json(external_ref), '')
                   || ',"layer":' || to_json(layer) || coalesce(',"loan_id":"' || loan_id || '"', '')
                   || ',"sequence":' || sequence || '}', ',' ORDER BY sequence) AS lines
               FROM journal_line WHERE tenant_id = %(tenant)s GROUP BY entry_id
           ), said AS (
               SELECT *, CASE WHEN document IS JSON OBJECT THEN document::json -> 'actor' END AS actor,
                      CASE WHEN document IS JSON OBJECT THEN document::json -> 'description' END AS description
               FROM journal_entry WHERE tenant_id = %(tenant)s
           )
           SELECT 'journal_entry', json_build_object('journal_entry_id', e.id),
                  CASE WHEN e.actor IS NULL THEN 'the document is not an entry in JSON'
                       ELSE 'the document differs from the rows' END
           FROM said e
           LEFT JOIN line l ON l.entry_id = e.id
           WHERE e.document IS DISTINCT FROM
                 '{"actor":' || e.actor || ',"correlation_id":"' || e.correlation_id || '"'
                 || coalesce(',"description":' || e.description, '')
                 || ',"effective_at":"' || to_char(e.effective_at, 'YYYY-MM-DD') || '","event_type":' || to_json(e.event_type)
                 || ',"journal_entry_id":"' || e.id || '","lines":[' || coalesce(l.lines, '') || '],"posted_at":"'
                 || to_char(e.posted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '"'
                 || coalesce(',"reverses_entry_id":"' || e.reverses_entry_id || '"', '')
                 || ',"tenant_id":"' || e.tenant_id || '","v":1}'""",
    )


def hashes_match_documents(cursor: CursorWrapper) -> list[Breach]:
    """Every entry's content_hash is the SHA-256 of its document."""
    return _breaches(
        cursor,
        """SELECT 'journal_entry', json_build_object('journal_entry_id', id), 'content_hash is not the document''s SHA-256'
           FROM journal_entry
           WHERE tenant_id = %(tenant)s AND content_hash IS DISTINCT FROM sha256(convert_to(document, 'UTF8'))""",
    )


# --- Balances --------------------------------------------------------------------------------------------------------


def balances_match_lines(cursor: CursorWrapper) -> list[Breach]:
    """I4. Every loan's balances are the sums of its lines."""
    return _breaches(
        cursor,
        f"""SELECT 'loan_balance', json_build_object('loan_id', loan_id, 'account_code', account_code, 'layer', layer),
                   coalesce('says ' || recorded, 'is missing') || ', the lines sum to ' || minor
            FROM ({BALANCE_DIFFERENCES.replace("%(loans)s", "NULL")}) d""",
    )


def control_accounts_match_loans(cursor: CursorWrapper) -> list[Breach]:
    """I3. Every account that is kept per loan equals the sum of the loans' balances on it."""
    return _breaches(
        cursor,
        """SELECT 'gl_account', json_build_object('account_code', code, 'currency', currency, 'layer', layer),
                  'the account is at ' || coalesce(l.minor, 0) || ', its loans at ' || coalesce(b.minor, 0)
           FROM (SELECT a.code, j.currency, j.layer,
                        sum(CASE j.direction WHEN a.normal_side THEN j.amount_minor ELSE -j.amount_minor END) AS minor
                 FROM journal_line j
                 JOIN gl_account a ON a.tenant_id = j.tenant_id AND a.code = j.account_code AND a.per_loan
                 WHERE j.tenant_id = %(tenant)s GROUP BY a.code, j.currency, j.layer) l
           FULL JOIN (SELECT account_code AS code, currency, layer, sum(balance_minor) AS minor
                      FROM loan_balance WHERE tenant_id = %(tenant)s GROUP BY 1, 2, 3) b USING (code, currency, layer)
           WHERE coalesce(l.minor, 0) <> coalesce(b.minor, 0)""",
    )


def no_balance_was_ever_below_zero(cursor: CursorWrapper) -> list[Breach]:
    """I11. What a loan owes, and its suspense, are not below zero as of any date."""
    return _breaches(
        cursor,
        """SELECT DISTINCT ON (loan_id, account_code, layer) 'loan_balance',
                  json_build_object('loan_id', loan_id, 'account_code', account_code, 'layer', layer),
                  'is ' || minor || ' as of ' || to_char(effective_at, 'YYYY-MM-DD')
           FROM (SELECT l.loan_id, l.account_code, l.layer, l.effective_at,
                        sum(sum(CASE l.direction WHEN a.normal_side THEN l.amount_minor ELSE -l.amount_minor END))
                            OVER (PARTITION BY l.loan_id, l.account_code, l.layer ORDER BY l.effective_at) AS minor
                 FROM journal_line l
                 JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code
                     AND a.per_loan AND a.role IN ('principal', 'interest', 'fees', 'suspense')
                 WHERE l.tenant_id = %(tenant)s
                 GROUP BY l.loan_id, l.account_code, l.layer, l.effective_at) running
           WHERE minor < 0
           ORDER BY loan_id, account_code, layer, effective_at""",
    )


# --- What belongs together -------------------------------------------------------------------------------------------


def lines_belong_together(cursor: CursorWrapper) -> list[Breach]:
    """I5. Every line has its entry, on the same date; its account; and its loan, with that loan's borrower and currency."""
    return _breaches(
        cursor,
        """SELECT 'journal_line', json_build_object('journal_entry_id', l.entry_id, 'sequence', l.sequence),
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
           WHERE l.tenant_id = %(tenant)s
             AND (e.id IS NULL OR e.effective_at <> l.effective_at OR a.code IS NULL
                  OR (l.loan_id IS NULL AND a.per_loan)
                  OR (l.loan_id IS NOT NULL AND (o.id IS NULL OR o.borrower_id IS DISTINCT FROM l.borrower_id
                                                 OR o.currency <> l.currency)))""",
    )


def entries_belong_together(cursor: CursorWrapper) -> list[Breach]:
    """I5. Every entry names the one loan of its lines, and entries that exist; every loan has its program, in one currency."""
    return _breaches(
        cursor,
        """SELECT 'journal_entry', json_build_object('journal_entry_id', e.id),
                  'names loan ' || coalesce(e.loan_id::text, 'none') || ', its lines '
                  || CASE l.loans WHEN 0 THEN 'none' WHEN 1 THEN l.loan_id ELSE l.loans::text END
           FROM journal_entry e
           JOIN (SELECT entry_id, count(DISTINCT loan_id) AS loans, min(loan_id::text) AS loan_id
                 FROM journal_line WHERE tenant_id = %(tenant)s GROUP BY entry_id) l ON l.entry_id = e.id
           WHERE e.tenant_id = %(tenant)s
             AND e.loan_id IS DISTINCT FROM CASE l.loans WHEN 1 THEN l.loan_id::uuid END
           UNION ALL
           SELECT 'journal_entry', json_build_object('journal_entry_id', e.id),
                  'there is no entry ' || t.id || ', which it ' || t.verb
           FROM journal_entry e
           CROSS JOIN LATERAL (VALUES ('reverses', e.reverses_entry_id), ('settles', e.settles_entry_id)) t (verb, id)
           LEFT JOIN journal_entry o ON o.tenant_id = e.tenant_id AND o.id = t.id
           WHERE e.tenant_id = %(tenant)s AND t.id IS NOT NULL AND o.id IS NULL
           UNION ALL
           SELECT 'loan', json_build_object('loan_id', o.id),
                  CASE WHEN p.id IS NULL THEN 'there is no program ' || o.program_id
                       ELSE 'is in ' || o.currency || ', its program in ' || p.currency END
           FROM loan o
           LEFT JOIN program p ON p.tenant_id = o.tenant_id AND p.id = o.program_id
           WHERE o.tenant_id = %(tenant)s AND p.currency IS DISTINCT FROM o.currency""",
    )


def balances_belong_together(cursor: CursorWrapper) -> list[Breach]:
    """I5. Every balance has its loan, in that loan's currency, and an account that is kept per loan."""
    return _breaches(
        cursor,
        """SELECT 'loan_balance',
                  json_build_object('loan_id', b.loan_id, 'account_code', b.account_code, 'layer', b.layer),
                  CASE WHEN o.id IS NULL THEN 'there is no such loan'
                       WHEN a.code IS NULL THEN 'account ' || b.account_code || ' is not kept per loan'
                       WHEN o.currency <> b.currency THEN 'is in ' || b.currency || ', the loan in ' || o.currency
                       ELSE 'floored is ' || b.floored || ' for the role ' || coalesce(a.role, 'none') END
           FROM loan_balance b
           LEFT JOIN loan o ON o.tenant_id = b.tenant_id AND o.id = b.loan_id
           LEFT JOIN gl_account a ON a.tenant_id = b.tenant_id AND a.code = b.account_code AND a.per_loan
           WHERE b.tenant_id = %(tenant)s
             AND (o.id IS NULL OR a.code IS NULL OR o.currency <> b.currency
                  OR b.floored <> coalesce(a.role IN ('principal', 'interest', 'fees', 'suspense'), false))""",
    )


def terms_belong_together(cursor: CursorWrapper) -> list[Breach]:
    """I5. The tenant exists; every program has terms; every row of terms has its program or loan; terms that came with an entry
    came with a restructure of that loan, from its date on."""
    return _breaches(
        cursor,
        """SELECT 'tenant', json_build_object('tenant_id', %(tenant)s::uuid), 'its row is missing'
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
           WHERE t.tenant_id = %(tenant)s
             AND NOT EXISTS (SELECT FROM loan o WHERE o.tenant_id = t.tenant_id AND o.id = t.loan_id)
           UNION ALL
           SELECT 'loan_terms', json_build_object('loan_id', t.loan_id, 'id', t.id),
                  'came with entry ' || t.entry_id || ', which is no restructure of the loan on ' || t.effective_at
           FROM loan_terms t
           LEFT JOIN journal_entry e ON e.tenant_id = t.tenant_id AND e.id = t.entry_id
           WHERE t.tenant_id = %(tenant)s AND t.entry_id IS NOT NULL
             AND (e.event_type, e.loan_id, e.effective_at) IS DISTINCT FROM ('restructure', t.loan_id, t.effective_at)""",
    )


def loans_stand_as_the_journal_says(cursor: CursorWrapper) -> list[Breach]:
    """A loan knows how many entries in force have lent principal (giving a payment back lends none), and what has ended it."""
    return _breaches(
        cursor,
        """WITH standing AS (
               SELECT e.id, e.event_type FROM journal_entry e
               WHERE e.tenant_id = %(tenant)s AND e.event_type NOT IN ('reversal', 'payment_returned', 'payment_allocated')
                 AND NOT EXISTS (SELECT FROM journal_entry r WHERE r.tenant_id = e.tenant_id AND r.reverses_entry_id = e.id
                                 AND r.event_type = 'reversal')
           ), said AS (
               SELECT l.loan_id,
                      count(DISTINCT s.id) FILTER (WHERE l.direction = 'DR' AND a.role = 'principal') AS draws,
                      array_agg(DISTINCT CASE s.event_type WHEN 'chargeoff' THEN 'charged_off' ELSE 'refinanced' END)
                          FILTER (WHERE l.direction = 'CR' AND s.event_type IN ('chargeoff', 'refinance')) AS endings
               FROM standing s
               JOIN journal_line l ON l.tenant_id = %(tenant)s AND l.entry_id = s.id AND l.layer = 'SETTLED'
               JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code
                   AND a.role IN ('principal', 'interest', 'fees')
               WHERE l.loan_id IS NOT NULL
               GROUP BY l.loan_id
           )
           SELECT 'loan', json_build_object('loan_id', o.id),
                  CASE WHEN o.draws <> coalesce(s.draws, 0)
                           THEN 'says that ' || o.draws || ' entries lent principal, the journal ' || coalesce(s.draws, 0)
                       ELSE 'says ' || coalesce(o.ended_as, 'not ended') || ', the journal '
                            || coalesce(array_to_string(s.endings, ' and '), 'not ended') END
           FROM loan o
           LEFT JOIN said s ON s.loan_id = o.id
           WHERE o.tenant_id = %(tenant)s
             AND (o.draws <> coalesce(s.draws, 0)
                  OR CASE WHEN o.ended_as IS NOT NULL THEN ARRAY[o.ended_as] END IS DISTINCT FROM s.endings)""",
    )


def keys_point_to_entries(cursor: CursorWrapper) -> list[Breach]:
    """I5. Every idempotency key's stored answer is JSON, and the journal entry that it names exists."""
    return _breaches(
        cursor,
        """SELECT 'idempotency_key', json_build_object('key', k.key),
                  CASE WHEN k.named IS NULL THEN 'the stored answer is not JSON'
                       ELSE 'there is no entry ' || k.named END
           FROM (SELECT key, CASE WHEN response IS JSON OBJECT
                                  THEN coalesce(response::json ->> 'journal_entry_id', '') END AS named
                 FROM idempotency_key WHERE tenant_id = %(tenant)s) k
           WHERE k.named IS NULL
              OR (k.named <> '' AND NOT EXISTS (SELECT FROM journal_entry e
                                                WHERE e.tenant_id = %(tenant)s AND e.id::text = k.named))""",
    )


# --- What happens once -----------------------------------------------------------------------------------------------


def reversals_mirror_once(cursor: CursorWrapper) -> list[Breach]:
    """I6. An entry is reversed at most once, by the exact mirror of its lines, not dated before it; a reversal never is."""
    return _breaches(
        cursor,
        """WITH reversal AS (
               SELECT r.id, r.event_type, r.effective_at, o.id AS of, o.event_type AS of_type,
                      o.effective_at AS of_effective_at, o.settles_entry_id IS NOT NULL AS of_settles
               FROM journal_entry r
               LEFT JOIN journal_entry o ON o.tenant_id = r.tenant_id AND o.id = r.reverses_entry_id
               WHERE r.tenant_id = %(tenant)s
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
_SETTLEMENTS = """
    SELECT s.id, s.event_type, s.effective_at, o.id AS of, o.event_type AS of_type, o.effective_at AS of_effective_at,
           o.settles_entry_id IS NOT NULL AS of_settles, l.layer = 'PENDING' AND o.settles_entry_id IS NULL AS announced
    FROM journal_entry s
    LEFT JOIN journal_entry o ON o.tenant_id = s.tenant_id AND o.id = s.settles_entry_id
    LEFT JOIN journal_line l ON l.tenant_id = o.tenant_id AND l.entry_id = o.id AND l.sequence = 1
    WHERE s.tenant_id = %(tenant)s AND (s.settles_entry_id IS NOT NULL OR s.event_type = 'disbursement_settled')
"""


def settlements_settle_once(cursor: CursorWrapper) -> list[Breach]:
    """I6. A payment or disbursement is settled at most once, not dated before it, and what is settled is not reversed as well."""
    return _breaches(
        cursor,
        f"""WITH settlement AS ({_SETTLEMENTS})
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


def settlements_move_what_they_settle(cursor: CursorWrapper) -> list[Breach]:
    """A settlement leaves nothing of the announcement on PENDING and moves its amount in cash; what puts a payment back leaves
    nothing of what the payment gave to receivables."""
    return _breaches(
        cursor,
        f"""WITH leg AS (
               SELECT s.id, s.event_type, s.announced, a.role, l.layer, l.account_code, l.entry_id = s.id AS settling,
                      CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE -l.amount_minor END AS net
               FROM ({_SETTLEMENTS}) s
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


def returns_give_back_what_came(cursor: CursorWrapper) -> list[Breach]:
    """A return names a payment or its settlement and gives all of its cash back; of an allocation from suspense that is in
    force no more is taken back than it allocated, and as much as the return says."""
    return _breaches(
        cursor,
        """WITH returned AS (
               SELECT r.id, r.loan_id, r.facts, o.id AS of, o.event_type AS of_type, o.settles_entry_id, o.loan_id AS of_loan_id
               FROM journal_entry r
               LEFT JOIN journal_entry o ON o.tenant_id = r.tenant_id AND o.id = r.reverses_entry_id
               WHERE r.tenant_id = %(tenant)s AND r.event_type = 'payment_returned'
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


def closed_periods_stay_as_they_were(cursor: CursorWrapper) -> list[Breach]:
    """The trial balances that were kept when a period was closed are still what the lines dated in it sum to."""
    return _breaches(
        cursor,
        """WITH period AS (
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
           ), posted AS (
               SELECT p.through_date, d.currency, d.layer, d.account_code AS code, sum(d.dr) AS dr, sum(d.cr) AS cr
               FROM period p JOIN day d ON d.effective_at <= p.through_date
               GROUP BY 1, 2, 3, 4
           )
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


def accruals_are_live_once(cursor: CursorWrapper) -> list[Breach]:
    """I7. A loan has one accrual per date that is not reversed; each is of its entry, on its date, with that entry's interest.

    That is its income: what a correction takes beyond the interest owed is the borrower's."""
    return _breaches(
        cursor,
        """WITH accrued AS (
               SELECT a.*, e.id AS of, e.event_type, e.effective_at,
                      EXISTS (SELECT FROM journal_entry r
                              WHERE r.tenant_id = a.tenant_id AND r.reverses_entry_id = a.entry_id) AS reversed
               FROM loan_accrual a
               LEFT JOIN journal_entry e ON e.tenant_id = a.tenant_id AND e.id = a.entry_id
               WHERE a.tenant_id = %(tenant)s
           )
           SELECT 'loan_accrual', json_build_object('loan_id', loan_id, 'accrual_date', accrual_date),
                  'has ' || count(*) || ' accruals that are not reversed'
           FROM accrued WHERE NOT reversed GROUP BY loan_id, accrual_date HAVING count(*) > 1
           UNION ALL
           SELECT 'loan_accrual', json_build_object('loan_id', loan_id, 'accrual_date', accrual_date),
                  'has ' || count(*) || ' revisions, numbered ' || min(revision) || ' to ' || max(revision)
           FROM accrued GROUP BY loan_id, accrual_date HAVING min(revision) <> 0 OR max(revision) <> count(*) - 1
           UNION ALL
           SELECT 'loan_accrual',
                  json_build_object('loan_id', loan_id, 'accrual_date', accrual_date, 'revision', revision),
                  CASE WHEN of IS NULL THEN 'there is no entry ' || entry_id
                       ELSE 'is of a ' || event_type || ' effective on ' || effective_at END
           FROM accrued WHERE of IS NULL OR event_type <> 'accrual' OR effective_at <> accrual_date
           UNION ALL
           SELECT 'loan_accrual', json_build_object('loan_id', loan_id, 'journal_entry_id', entry_id),
                  'says ' || coalesce(sum(said)::text, 'nothing') || ', the entry posts ' || coalesce(sum(posted), 0)
           FROM (SELECT loan_id, entry_id, interest_minor AS said, NULL AS posted FROM accrued
                 UNION ALL
                 SELECT l.loan_id, l.entry_id, NULL,
                        CASE l.direction WHEN a.normal_side THEN l.amount_minor ELSE -l.amount_minor END
                 FROM journal_line l
                 JOIN journal_entry e ON e.tenant_id = l.tenant_id AND e.id = l.entry_id AND e.event_type = 'accrual'
                 JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.role = 'interest_income'
                 WHERE l.tenant_id = %(tenant)s) both_sides
           GROUP BY loan_id, entry_id
           HAVING sum(said) IS DISTINCT FROM coalesce(sum(posted), 0)""",
    )


def interest_is_posted_once(cursor: CursorWrapper) -> list[Breach]:
    """What a loan says that the engine has posted of its interest is what is in force: accruals of runs, and what came with a
    charge-off or a refinance. A reversed accrual has paused its days."""
    return _breaches(
        cursor,
        """WITH reversed AS (
               SELECT reverses_entry_id AS id FROM journal_entry WHERE tenant_id = %(tenant)s AND event_type = 'reversal'
           ), posted AS (
               SELECT loan_id, interest_minor AS minor FROM loan_accrual
               WHERE tenant_id = %(tenant)s AND since IS NOT NULL AND entry_id NOT IN (SELECT id FROM reversed)
               UNION ALL
               SELECT l.loan_id, CASE l.direction WHEN 'CR' THEN l.amount_minor ELSE -l.amount_minor END
               FROM journal_entry e
               JOIN journal_line l ON l.tenant_id = e.tenant_id AND l.entry_id = e.id
               JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.role = 'interest_income'
               WHERE e.tenant_id = %(tenant)s AND e.event_type IN ('chargeoff', 'refinance')
                 AND e.id NOT IN (SELECT id FROM reversed)
           )
           SELECT 'loan', json_build_object('loan_id', o.id),
                  'says that ' || o.interest_posted_minor || ' of its interest is posted, the journal ' || coalesce(p.minor, 0)
           FROM loan o
           LEFT JOIN (SELECT loan_id, sum(minor) AS minor FROM posted GROUP BY loan_id) p ON p.loan_id = o.id
           WHERE o.tenant_id = %(tenant)s AND o.interest_posted_minor <> coalesce(p.minor, 0)
           UNION ALL
           SELECT 'accrual_pause', json_build_object('loan_id', coalesce(p.loan_id, x.loan_id), 'id', p.id),
                  CASE WHEN p.id IS NULL THEN 'the accrual of ' || x.accrual_date || ' is reversed and its days earn'
                       ELSE 'no accrual of ' || p.to_date || ' with these days is reversed' END
           FROM (SELECT * FROM accrual_pause WHERE tenant_id = %(tenant)s AND reversed_revision IS NOT NULL) p
           FULL JOIN (SELECT * FROM loan_accrual WHERE tenant_id = %(tenant)s AND since IS NOT NULL
                                                   AND entry_id IN (SELECT id FROM reversed)) x
               ON x.loan_id = p.loan_id AND x.accrual_date = p.to_date AND x.revision = p.reversed_revision
                  AND x.since + 1 = p.from_date
           WHERE p.id IS NULL OR x.loan_id IS NULL""",
    )


def interest_is_exact(cursor: CursorWrapper) -> list[Breach]:
    """What the engine has counted of a loan's interest is what the lines and terms that it knew then give, counted anew from the
    opening. A loan whose terms have changed behind that date waits for the next run, and is passed over."""
    return _breaches(
        cursor,
        """WITH known AS MATERIALIZED (
               SELECT d.program_id, d.day, t.terms, terms_known(t.terms, d.day) AS said
               FROM (SELECT DISTINCT program_id, accrued_through AS day
                     FROM loan WHERE tenant_id = %(tenant)s AND accrued_terms IS NOT NULL) d
               JOIN (SELECT id, interest_terms(tenant_id, id, NULL, NULL) AS terms
                     FROM program WHERE tenant_id = %(tenant)s) t ON t.id = d.program_id
           )
           SELECT 'loan', json_build_object('loan_id', o.id),
                  'counts ' || o.interest_exact || ' of interest through ' || o.accrued_through || ', its lines and terms give '
                  || coalesce(f.exact::text, 'nothing')
           FROM loan o
           JOIN known ON known.program_id = o.program_id AND known.day = o.accrued_through
           CROSS JOIN LATERAL (
               SELECT nullif(concat_ws(
                   ' ',
                   (SELECT string_agg(concat_ws(' ', t.id, t.effective_at), ',' ORDER BY t.id) FROM loan_terms t
                    WHERE t.tenant_id = o.tenant_id AND t.loan_id = o.id
                      AND NOT EXISTS (SELECT FROM journal_entry r
                                      WHERE r.tenant_id = t.tenant_id AND r.reverses_entry_id = t.entry_id)),
                   (SELECT string_agg(concat_ws(' ', p.id, p.from_date), ',' ORDER BY p.id)
                    FROM accrual_pauses(o.tenant_id, o.id, o.id, NULL) p)), '') AS said OFFSET 0) own
           -- A loan without terms of its own has its program's; to put a loan's own together costs more than to count.
           CROSS JOIN LATERAL (
               SELECT interest_onward(
                   o.tenant_id, o.id, o.opened_on,
                   CASE WHEN own.said IS NULL THEN known.terms ELSE interest_terms(o.tenant_id, o.program_id, o.id, NULL) END,
                   NULL, NULL, 0, o.opened_on, 0, o.accrued_through, o.accrued_version, NULL) AS exact OFFSET 0) f
           WHERE o.tenant_id = %(tenant)s
             AND o.accrued_terms = hashtextextended(concat_ws(' ', known.said, own.said), 0)
             AND o.interest_exact IS DISTINCT FROM f.exact""",
    )


def accrual_runs_add_up(cursor: CursorWrapper) -> list[Breach]:
    """A run's chunks lie side by side and cover every id; their figures are those of its entries; it ends when all are done."""
    return _breaches(
        cursor,
        """WITH chunk AS (
               SELECT c.*, lag(c.through_id) OVER w AS before_id, row_number() OVER w AS place,
                      count(*) OVER (PARTITION BY run_id) AS n
               FROM accrual_chunk c WHERE c.tenant_id = %(tenant)s
               WINDOW w AS (PARTITION BY c.run_id ORDER BY c.after_id NULLS FIRST)
           ), figure AS (
               SELECT r.id, coalesce(sum(c.total_minor), 0) AS total, coalesce(sum(c.accrued_count), 0) AS accrued,
                      count(c.number) AS chunks, count(c.done_at) AS done
               FROM accrual_run r LEFT JOIN chunk c ON c.run_id = r.id
               WHERE r.tenant_id = %(tenant)s GROUP BY r.id
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
           WHERE f.id IS NULL OR (f.total, f.accrued) <> (coalesce(p.total, 0), coalesce(p.accrued, 0))
           UNION ALL
           SELECT 'accrual_run', json_build_object('accrual_run_id', r.id), 'has ended before its chunks'
           FROM accrual_run r JOIN figure f ON f.id = r.id
           WHERE r.tenant_id = %(tenant)s AND r.finished_at IS NOT NULL AND (f.chunks = 0 OR f.done < f.chunks)
           UNION ALL
           SELECT 'accrual_exception', json_build_object('accrual_run_id', x.run_id, 'loan_id', x.loan_id),
                  'is of no loan of the run''s program'
           FROM accrual_exception x
           LEFT JOIN accrual_run r ON r.tenant_id = x.tenant_id AND r.id = x.run_id
           LEFT JOIN loan o ON o.tenant_id = x.tenant_id AND o.id = x.loan_id AND o.program_id = r.program_id
           WHERE x.tenant_id = %(tenant)s AND o.id IS NULL""",
    )


def outbox_has_each_entry_once(cursor: CursorWrapper) -> list[Breach]:
    """I8. Every entry has exactly one outbox message, written by its own transaction."""
    return _breaches(
        cursor,
        """SELECT 'outbox_message', json_build_object('journal_entry_id', entry_id),
                  CASE WHEN entries = 0 THEN 'there is no such entry'
                       WHEN messages <> 1 THEN 'there are ' || messages || ' messages'
                       ELSE 'another transaction wrote it' END
           FROM (SELECT entry_id, sum(entry) AS entries, sum(message) AS messages, count(DISTINCT xid::text) AS transactions
                 FROM (SELECT id AS entry_id, 1 AS entry, 0 AS message, created_xid AS xid
                       FROM journal_entry WHERE tenant_id = %(tenant)s
                       UNION ALL
                       SELECT entry_id, 0, 1, created_xid FROM outbox_message WHERE tenant_id = %(tenant)s) each_one
                 GROUP BY entry_id) counted
           WHERE entries <> 1 OR messages <> 1 OR transactions <> 1""",
    )


def versions_have_no_gap(cursor: CursorWrapper) -> list[Breach]:
    """I12. The entries of a loan are numbered 1..n by its version, one each; the loan knows n and its last dates."""
    return _breaches(
        cursor,
        """SELECT 'loan', json_build_object('loan_id', o.id),
                  CASE WHEN l.versions IS NULL THEN 'is at version ' || o.version || ' and has no entry'
                       WHEN l.versions <> l.entries OR l.pairs <> l.entries OR l.first <> 1 OR l.last <> l.entries
                           THEN 'has ' || l.entries || ' entries, numbered ' || l.first || ' to ' || l.last || ', '
                                || l.versions || ' numbers'
                       WHEN l.last <> o.version THEN 'is at version ' || o.version || ', its last entry at ' || l.last
                       ELSE 'does not remember when it moved last' END
           FROM loan o
           LEFT JOIN (
               SELECT p.loan_id, count(*) AS pairs, count(DISTINCT p.entry_id) AS entries,
                      count(DISTINCT p.loan_version) AS versions, min(p.loan_version) AS first, max(p.loan_version) AS last,
                      max(e.effective_at) AS last_effective_at,
                      (array_agg(e.posted_at ORDER BY p.loan_version DESC))[1] AS last_posted_at
               FROM (SELECT DISTINCT loan_id, loan_version, entry_id
                     FROM journal_line WHERE tenant_id = %(tenant)s AND loan_id IS NOT NULL) p
               LEFT JOIN journal_entry e ON e.tenant_id = %(tenant)s AND e.id = p.entry_id
               GROUP BY p.loan_id) l ON l.loan_id = o.id
           WHERE o.tenant_id = %(tenant)s
             AND (o.version <> coalesce(l.last, 0) OR l.first <> 1 OR l.last <> l.entries OR l.pairs <> l.entries
                  OR l.versions <> l.entries OR o.last_effective_at IS DISTINCT FROM l.last_effective_at
                  OR o.last_posted_at IS DISTINCT FROM l.last_posted_at)""",
    )


CHECKS: tuple[Check, ...] = (
    entries_are_whole,
    entries_balance,
    trial_balance_is_zero,
    documents_match_rows,
    hashes_match_documents,
    balances_match_lines,
    control_accounts_match_loans,
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
    outbox_has_each_entry_once,
    versions_have_no_gap,
)
