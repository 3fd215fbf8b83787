BEGIN TRANSACTION;
CREATE TABLE alerts (                  -- each threshold once per period
    period TEXT NOT NULL,
    since REAL NOT NULL,
    threshold INTEGER NOT NULL,
    PRIMARY KEY (period, since, threshold)
) WITHOUT ROWID;
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
INSERT INTO "entries" VALUES(1,1.79560367433366298677e+09,'reserve','old-1:budget.reserve','old-1','local','time_management',0);
CREATE TABLE events (
        stream TEXT NOT NULL,
        seq INTEGER NOT NULL,
        type TEXT NOT NULL,
        data TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (stream, seq)
    ) WITHOUT ROWID;
CREATE TABLE inbox (
        id TEXT PRIMARY KEY,              -- the caller's message id: the key of exactly-once effect
        digest TEXT NOT NULL,             -- sha256 of method and params: another body under one id is a conflict
        message TEXT NOT NULL,            -- the envelope as JSON
        priority INTEGER NOT NULL,
        response_topic TEXT,
        correlation BLOB,
        received_at REAL NOT NULL,
        next_at REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        state TEXT NOT NULL CHECK (state IN ('pending', 'open', 'done')),  -- open: the answer comes later
        reply TEXT                        -- the reply as JSON, kept so that a repeated call gets the same one
    );
INSERT INTO "inbox" VALUES('old-1:budget.reserve','b783656a5f4249f6051f47200964d85798034a65df9b008a13ce521093f925b6','{"id": "old-1:budget.reserve", "timestamp": "2026-11-25T10:47:54.242002Z", "sender": "conductor-1", "recipient": null, "type": "budget.reserve", "data": {"job": "old-1", "amount_micros": 0, "provider": "local", "domain": "time_management", "priority": 1}, "priority": 1, "deadline": null, "traceparent": "00-70f17d72585d3a63109fbfaefb9f8d34-619e8819941f50c7-01", "generated_id": false}',1,'meetara/v1/lab/reply/conductor-1',X'6F6C642D313A6275646765742E72657365727665',1.79560367433366298677e+09,1.79560367433366298677e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:budget.reserve","result":{"reservation":"old-1:budget.reserve","job":"old-1","amount_micros":0}}');
CREATE TABLE open_reservations (       -- the reservations without an end, so that the sum needs no scan of the past
    reservation TEXT PRIMARY KEY,
    amount_micros INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "open_reservations" VALUES('old-1:budget.reserve',0);
CREATE TABLE outbox (
        id TEXT PRIMARY KEY,
        method TEXT NOT NULL,
        recipient TEXT,                   -- an agent's id, or NULL for whoever serves the method
        message TEXT NOT NULL,
        key TEXT NOT NULL,
        context TEXT NOT NULL,
        deadline REAL,
        next_at REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        failures INTEGER NOT NULL DEFAULT 0  -- how often the handler of the reply failed
    );
CREATE TABLE publications (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL,
        payload BLOB NOT NULL,
        retain INTEGER NOT NULL,
        expiry INTEGER
    );
CREATE TABLE timers (
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        due REAL NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (name, key)
    ) WITHOUT ROWID;
CREATE TABLE versions (component TEXT PRIMARY KEY, version INTEGER);
INSERT INTO "versions" VALUES('bus',1);
INSERT INTO "versions" VALUES('agent',1);
CREATE INDEX inbox_pending ON inbox (priority DESC, received_at) WHERE state = 'pending';
CREATE INDEX inbox_done ON inbox (received_at) WHERE state = 'done';
CREATE INDEX outbox_due ON outbox (next_at);
CREATE INDEX outbox_key ON outbox (key, method);
CREATE UNIQUE INDEX reserved_once ON entries (reservation) WHERE kind = 'reserve';
CREATE UNIQUE INDEX ended_once ON entries (reservation) WHERE kind <> 'reserve';
CREATE INDEX settled_at ON entries (at) WHERE kind = 'settle';
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('publications',2);
INSERT INTO "sqlite_sequence" VALUES('entries',1);
COMMIT;
