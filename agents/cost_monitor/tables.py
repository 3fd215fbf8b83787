"""The cost monitor's tables: the scripts that make them, in order."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,                  -- Unix time
    kind TEXT NOT NULL CHECK (kind IN ('reserve', 'settle', 'release')),
    reservation TEXT NOT NULL,
    job TEXT NOT NULL,
    provider TEXT NOT NULL,
    domain TEXT NOT NULL,
    amount_micros INTEGER NOT NULL CHECK (amount_micros >= 0)
);
CREATE UNIQUE INDEX reserved_once ON entries (reservation) WHERE kind = 'reserve';
CREATE UNIQUE INDEX ended_once ON entries (reservation) WHERE kind <> 'reserve';
CREATE INDEX settled_at ON entries (at) WHERE kind = 'settle';
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TABLE open_reservations (       -- the reservations without an end, so that the sum needs no scan of the past
    reservation TEXT PRIMARY KEY,
    amount_micros INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE alerts (                  -- each threshold once per period
    period TEXT NOT NULL,
    since REAL NOT NULL,
    threshold INTEGER NOT NULL,
    PRIMARY KEY (period, since, threshold)
) WITHOUT ROWID;
"""

PARTS = """
DROP TRIGGER entries_stay;
DROP TRIGGER entries_last;
DROP INDEX reserved_once;
DROP INDEX ended_once;
DROP INDEX settled_at;
ALTER TABLE entries RENAME TO first_entries;
CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,                  -- Unix time of the entry
    counts_at REAL NOT NULL,           -- the time in whose periods it counts: of a refund that of what it refunds
    kind TEXT NOT NULL CHECK (kind IN ('reserve', 'extend', 'part', 'settle', 'release', 'correct')),
    reservation TEXT NOT NULL,         -- empty: an instance was billed that no job had
    job TEXT NOT NULL,
    provider TEXT NOT NULL,
    domain TEXT NOT NULL,
    rental TEXT NOT NULL DEFAULT '',
    part TEXT NOT NULL DEFAULT '',
    bill_follows INTEGER NOT NULL DEFAULT 0,
    amount_micros INTEGER NOT NULL CHECK (amount_micros >= 0 OR refunds IS NOT NULL),
    refunds INTEGER REFERENCES entries (number),
    note TEXT NOT NULL DEFAULT ''
);
INSERT INTO entries (number, at, counts_at, kind, reservation, job, provider, domain, amount_micros)
    SELECT number, at, at, kind, reservation, job, provider, domain, amount_micros FROM first_entries ORDER BY number;
DROP TABLE first_entries;
CREATE UNIQUE INDEX reserved_once ON entries (reservation) WHERE kind = 'reserve';
CREATE UNIQUE INDEX ended_once ON entries (reservation) WHERE kind IN ('settle', 'release');
CREATE UNIQUE INDEX parted_once ON entries (reservation, part) WHERE kind = 'part';
CREATE INDEX entries_by_reservation ON entries (reservation);
CREATE INDEX entries_by_rental ON entries (provider, rental) WHERE rental <> '';
CREATE INDEX entries_by_job ON entries (job);
CREATE INDEX entries_by_time ON entries (counts_at);
CREATE INDEX spent_at ON entries (counts_at, kind, amount_micros) WHERE kind IN ('part', 'settle', 'correct');
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
ALTER TABLE open_reservations ADD COLUMN held INTEGER NOT NULL DEFAULT 0;  -- it has ended, but a bill is still to come
CREATE TABLE bills (                   -- the newest bill of each instance; what came of it stands in the entries
    provider TEXT NOT NULL,
    rental TEXT NOT NULL,
    jobs TEXT NOT NULL,                -- job to its part of the own meter, as JSON
    billed_micros INTEGER,             -- NULL: the provider does not tell
    since REAL NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (provider, rental)
) WITHOUT ROWID;
CREATE TABLE frozen_providers (provider TEXT PRIMARY KEY, at REAL NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE freezes (                 -- periods in which paid work was frozen, with the cap that was used up
    period TEXT NOT NULL,
    since REAL NOT NULL,
    cap_micros INTEGER NOT NULL,
    PRIMARY KEY (period, since, cap_micros)
) WITHOUT ROWID;
CREATE TABLE caps (                    -- changes of the budget; one holds while budget_settings.json says what it said then
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    usd REAL NOT NULL,
    configured_usd REAL NOT NULL,
    at REAL NOT NULL,
    signer TEXT NOT NULL               -- empty: nobody had to sign
);
CREATE TABLE wishes (name TEXT PRIMARY KEY, usd REAL NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE told (one INTEGER PRIMARY KEY CHECK (one = 1), mode TEXT NOT NULL);  -- the mode that was published last
"""
"""The second version: parts, corrections, bills, budgets that are changed."""

LIMITS = """
ALTER TABLE open_reservations ADD COLUMN limit_micros INTEGER;     -- most that may ever be set aside; NULL: no such limit
"""
"""The third version: what was approved, or allowed by the request, bounds a reservation for good."""

MIGRATIONS = (SCHEMA, PARTS, LIMITS)
