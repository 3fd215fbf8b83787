BEGIN TRANSACTION;
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
INSERT INTO "inbox" VALUES('old-1','ead3044601c0c992da42becd596f6ceeb16d9e2311921aff5100e97d377743ae','{"id": "old-1", "timestamp": "2026-11-25T10:47:50.629356Z", "sender": "test-c5f65945effd", "recipient": null, "type": "train.submit", "data": {"domain": "time_management", "dataset": "/ground/rows.jsonl", "eval_dataset": null, "tier": null, "base": null, "profile": "edge", "priority": 1, "quantisation": null, "budget_usd": null, "parameters": {"max_steps": 20, "batch_size": 6, "sequence_length": 512}}, "priority": 1, "deadline": null, "traceparent": "00-70f17d72585d3a63109fbfaefb9f8d34-619e8819941f50c7-01", "generated_id": false}',1,'meetara/v1/lab/reply/test-c5f65945effd',X'6F6C642D31',1795603670.63366,1795603670.63366,0,'done','{"jsonrpc":"2.0","id":"old-1","result":{"job":"old-1","state":"reserved","domain":"time_management","tier":"tiny","base":"/ground/base","message":"watch it: meetara watch old-1"}}');
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
CREATE INDEX inbox_pending ON inbox (priority DESC, received_at) WHERE state = 'pending';
CREATE INDEX inbox_done ON inbox (received_at) WHERE state = 'done';
CREATE INDEX outbox_due ON outbox (next_at);
CREATE INDEX outbox_key ON outbox (key, method);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('publications',2);
COMMIT;
