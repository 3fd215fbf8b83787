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
INSERT INTO "inbox" VALUES('old-1:job.plan','63e434f932f22f1bf92ac582d24d76d49a3c0d1c184a419f389a769a8e5bdc61','{"id": "old-1:job.plan", "timestamp": "2026-11-25T10:47:50.678648Z", "sender": "conductor-1", "recipient": null, "type": "job.plan", "data": {"job": "old-1", "request": {"domain": "time_management", "dataset": "/ground/rows.jsonl", "eval_dataset": null, "tier": null, "base": null, "profile": "edge", "priority": 1, "quantisation": null, "budget_usd": null, "parameters": {"max_steps": 20, "batch_size": 6, "sequence_length": 512}}, "route": {"domain": "time_management", "category": "daily_life", "tier": "tiny", "base": "/ground/base", "voice": "professional", "empathy": "high", "quality_floor": 85.0, "safety_critical": false}}, "priority": 1, "deadline": null, "traceparent": "00-70f17d72585d3a63109fbfaefb9f8d34-619e8819941f50c7-01", "generated_id": false}',1,'meetara/v1/lab/reply/conductor-1',X'6F6C642D313A6A6F622E706C616E',1.7956036707580161094e+09,1.7956036707580161094e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:job.plan","result":{"rows":52,"held_out_rows":8,"tokens":4921,"steps":20,"parameters":{"batch_size":6,"lora_r":8,"lora_alpha":16.0,"lora_dropout":0.05,"max_steps":20,"max_epochs":null,"max_tokens":null,"sequence_length":512,"learning_rate":0.001,"warmup_steps":1,"weight_decay":0.01,"save_steps":1,"control_share":0.0,"quantisation":"Q4_K_M","seed":42,"dataset_sha256":"003a741b5d85002645c8c24f06b9a6730f4c6d5d8c8e6e80336f9b8f04e5705a"},"base_parameters":3671296,"file_bytes":2861118,"disk_bytes":100960380,"memory_bytes":798767872,"seconds_p50":75.37310383657626,"seconds_p90":188.43275959144066,"warnings":[]}}');
INSERT INTO "inbox" VALUES('old-1:job.run:1','f2083f1f1aad5b697a8d265b595303b34d63742dfb5538510d93882431e79594','{"id": "old-1:job.run:1", "timestamp": "2026-11-25T10:47:54.589938Z", "sender": "conductor-1", "recipient": "gguf_factory-1", "type": "job.run", "data": {"job": "old-1", "request": {"domain": "time_management", "dataset": "/ground/rows.jsonl", "eval_dataset": null, "tier": null, "base": null, "profile": "edge", "priority": 1, "quantisation": null, "budget_usd": null, "parameters": {"max_steps": 20, "batch_size": 6, "sequence_length": 512}}, "route": {"domain": "time_management", "category": "daily_life", "tier": "tiny", "base": "/ground/base", "voice": "professional", "empathy": "high", "quality_floor": 85.0, "safety_critical": false}, "plan": {"rows": 52, "held_out_rows": 8, "tokens": 4921, "steps": 20, "parameters": {"batch_size": 6, "lora_r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "max_steps": 20, "max_epochs": null, "max_tokens": null, "sequence_length": 512, "learning_rate": 0.001, "warmup_steps": 1, "weight_decay": 0.01, "save_steps": 1, "control_share": 0.0, "quantisation": "Q4_K_M", "seed": 42, "dataset_sha256": "003a741b5d85002645c8c24f06b9a6730f4c6d5d8c8e6e80336f9b8f04e5705a"}, "base_parameters": 3671296, "file_bytes": 2861118, "disk_bytes": 100960380, "memory_bytes": 798767872, "seconds_p50": 75.37310383657626, "seconds_p90": 188.43275959144066, "warnings": []}, "lease": "01a21251-b5af-7911-b7b4-e91c13690d36", "fence": 1, "attempt": 1, "price_micros_per_hour": 0}, "priority": 1, "deadline": null, "traceparent": "00-70f17d72585d3a63109fbfaefb9f8d34-619e8819941f50c7-01", "generated_id": false}',1,'meetara/v1/lab/reply/conductor-1',X'6F6C642D313A6A6F622E72756E3A31',1.79560367469782090183e+09,1.79560367469782090183e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:job.run:1","result":{}}');
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
CREATE TABLE runs (                  -- jobs this factory holds a lease for
    job TEXT PRIMARY KEY,
    request TEXT NOT NULL,           -- the RunRequest as JSON
    renewed_at REAL NOT NULL,
    reports INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "runs" VALUES('old-1','{"job":"old-1","request":{"domain":"time_management","dataset":"/ground/rows.jsonl","eval_dataset":null,"tier":null,"base":null,"profile":"edge","priority":1,"quantisation":null,"budget_usd":null,"parameters":{"max_steps":20,"batch_size":6,"sequence_length":512}},"route":{"domain":"time_management","category":"daily_life","tier":"tiny","base":"/ground/base","voice":"professional","empathy":"high","quality_floor":85.0,"safety_critical":false},"plan":{"rows":52,"held_out_rows":8,"tokens":4921,"steps":20,"parameters":{"batch_size":6,"lora_r":8,"lora_alpha":16.0,"lora_dropout":0.05,"max_steps":20,"max_epochs":null,"max_tokens":null,"sequence_length":512,"learning_rate":0.001,"warmup_steps":1,"weight_decay":0.01,"save_steps":1,"control_share":0.0,"quantisation":"Q4_K_M","seed":42,"dataset_sha256":"003a741b5d85002645c8c24f06b9a6730f4c6d5d8c8e6e80336f9b8f04e5705a"},"base_parameters":3671296,"file_bytes":2861118,"disk_bytes":100960380,"memory_bytes":798767872,"seconds_p50":75.37310383657626,"seconds_p90":188.43275959144066,"warnings":[]},"lease":"01a21251-b5af-7911-b7b4-e91c13690d36","fence":1,"attempt":1,"price_micros_per_hour":0}',1.7956037067903170586e+09,5);
CREATE TABLE timers (
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        due REAL NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (name, key)
    ) WITHOUT ROWID;
INSERT INTO "timers" VALUES('renew','old-1',1.79560371470764589311e+09,'{}');
CREATE TABLE versions (component TEXT PRIMARY KEY, version INTEGER);
INSERT INTO "versions" VALUES('bus',1);
INSERT INTO "versions" VALUES('agent',1);
CREATE INDEX inbox_pending ON inbox (priority DESC, received_at) WHERE state = 'pending';
CREATE INDEX inbox_done ON inbox (received_at) WHERE state = 'done';
CREATE INDEX outbox_due ON outbox (next_at);
CREATE INDEX outbox_key ON outbox (key, method);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('publications',2);
COMMIT;
