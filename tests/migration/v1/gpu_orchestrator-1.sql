BEGIN TRANSACTION;
CREATE TABLE events (
        stream TEXT NOT NULL,
        seq INTEGER NOT NULL,
        type TEXT NOT NULL,
        data TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (stream, seq)
    ) WITHOUT ROWID;
CREATE TABLE fences (                -- outlives the leases, so that a fence is never used twice
    job TEXT PRIMARY KEY,
    fence INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "fences" VALUES('old-1',1);
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
INSERT INTO "inbox" VALUES('old-1:offer.quote','055cd23c0ca69be607cf4fee0aa24764b9116e2e05976a3258155e59f13f0887','{"id": "old-1:offer.quote", "timestamp": "2026-11-25T10:47:54.115038Z", "sender": "conductor-1", "recipient": null, "type": "offer.quote", "data": {"job": "old-1", "tier": "tiny", "plan": {"rows": 52, "held_out_rows": 8, "tokens": 4921, "steps": 20, "parameters": {"batch_size": 6, "lora_r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "max_steps": 20, "max_epochs": null, "max_tokens": null, "sequence_length": 512, "learning_rate": 0.001, "warmup_steps": 1, "weight_decay": 0.01, "save_steps": 1, "control_share": 0.0, "quantisation": "Q4_K_M", "seed": 42, "dataset_sha256": "003a741b5d85002645c8c24f06b9a6730f4c6d5d8c8e6e80336f9b8f04e5705a"}, "base_parameters": 3671296, "file_bytes": 2861118, "disk_bytes": 100960380, "memory_bytes": 798767872, "seconds_p50": 75.37310383657626, "seconds_p90": 188.43275959144066, "warnings": []}, "budget_usd": null}, "priority": 1, "deadline": null, "traceparent": "00-70f17d72585d3a63109fbfaefb9f8d34-619e8819941f50c7-01", "generated_id": false}',1,'meetara/v1/lab/reply/conductor-1',X'6F6C642D313A6F666665722E71756F7465',1.79560367419789505003e+09,1.79560367419789505003e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:offer.quote","result":{"job":"old-1","choice":{"provider":"local","machine":"gguf_factory-1","price_micros_per_hour":0,"seconds_p50":75.37310383657626,"seconds_p90":188.43275959144066,"cost_p50_micros":0,"cost_p90_micros":0,"reservation_micros":0},"rejected":{}}}');
INSERT INTO "inbox" VALUES('old-1:lease.request:1','c2ade5082f7f51c3cc792fde5f77cc5db57fe3f51c587d7f77eda2a1fd0c543d','{"id": "old-1:lease.request:1", "timestamp": "2026-11-25T10:47:54.393802Z", "sender": "conductor-1", "recipient": null, "type": "lease.request", "data": {"job": "old-1", "reservation": "old-1:budget.reserve", "priority": 1, "submitted_at": "2026-11-25T10:47:50.678648Z", "memory_bytes": 798767872, "avoid": []}, "priority": 1, "deadline": null, "traceparent": "00-70f17d72585d3a63109fbfaefb9f8d34-619e8819941f50c7-01", "generated_id": false}',1,'meetara/v1/lab/reply/conductor-1',X'6F6C642D313A6C656173652E726571756573743A31',1795603674.54269,1795603674.54269,0,'done','{"jsonrpc":"2.0","id":"old-1:lease.request:1","result":{"job":"old-1","lease":"01a21251-b5af-7911-b7b4-e91c13690d36","fence":1,"provider":"local","machine":"gguf_factory-1","price_micros_per_hour":0,"ttl_s":30.0,"expires_at":"2026-11-25T10:48:24.542690Z"}}');
INSERT INTO "inbox" VALUES('01a21251-d58b-72a0-89a2-08be35d5a6d2','84da792793424f866783cf65f8648e8ac5cb4cab63e5dceb1c88ce9335a46970','{"id": "01a21251-d58b-72a0-89a2-08be35d5a6d2", "timestamp": "2026-11-25T10:48:02.699214Z", "sender": "gguf_factory-1", "recipient": null, "type": "lease.renew", "data": {"job": "old-1", "lease": "01a21251-b5af-7911-b7b4-e91c13690d36", "fence": 1}, "priority": 1, "deadline": "2026-11-25T10:48:10.699214Z", "traceparent": "00-54089e486272a2579a7220fa7eefc99e-70869d1873c3f0be-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'30316132313235312D643538622D373261302D383961322D303862653335643561366432',1.79560368270134496689e+09,1.79560368270134496689e+09,0,'done','{"jsonrpc":"2.0","id":"01a21251-d58b-72a0-89a2-08be35d5a6d2","result":{"job":"old-1","lease":"01a21251-b5af-7911-b7b4-e91c13690d36","fence":1,"provider":"local","machine":"gguf_factory-1","price_micros_per_hour":0,"ttl_s":30.0,"expires_at":"2026-11-25T10:48:32.701345Z"}}');
INSERT INTO "inbox" VALUES('01a21251-f4cd-7408-ac53-d099303c3314','84da792793424f866783cf65f8648e8ac5cb4cab63e5dceb1c88ce9335a46970','{"id": "01a21251-f4cd-7408-ac53-d099303c3314", "timestamp": "2026-11-25T10:48:10.701359Z", "sender": "gguf_factory-1", "recipient": null, "type": "lease.renew", "data": {"job": "old-1", "lease": "01a21251-b5af-7911-b7b4-e91c13690d36", "fence": 1}, "priority": 1, "deadline": "2026-11-25T10:48:18.701359Z", "traceparent": "00-596b37179f2d23b20bea73e3f7cb2dfa-30bcc8dd72e789f5-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'30316132313235312D663463642D373430382D616335332D643039393330336333333134',1.79560369070325303079e+09,1.79560369070325303079e+09,0,'done','{"jsonrpc":"2.0","id":"01a21251-f4cd-7408-ac53-d099303c3314","result":{"job":"old-1","lease":"01a21251-b5af-7911-b7b4-e91c13690d36","fence":1,"provider":"local","machine":"gguf_factory-1","price_micros_per_hour":0,"ttl_s":30.0,"expires_at":"2026-11-25T10:48:40.703253Z"}}');
INSERT INTO "inbox" VALUES('01a21252-140f-756c-8074-628835b42788','84da792793424f866783cf65f8648e8ac5cb4cab63e5dceb1c88ce9335a46970','{"id": "01a21252-140f-756c-8074-628835b42788", "timestamp": "2026-11-25T10:48:18.703376Z", "sender": "gguf_factory-1", "recipient": null, "type": "lease.renew", "data": {"job": "old-1", "lease": "01a21251-b5af-7911-b7b4-e91c13690d36", "fence": 1}, "priority": 1, "deadline": "2026-11-25T10:48:26.703376Z", "traceparent": "00-94dd01bce34933467a852e9b2f4e52cb-575fffa8d5bbda54-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'30316132313235322D313430662D373536632D383037342D363238383335623432373838',1795603698.70524,1795603698.70524,0,'done','{"jsonrpc":"2.0","id":"01a21252-140f-756c-8074-628835b42788","result":{"job":"old-1","lease":"01a21251-b5af-7911-b7b4-e91c13690d36","fence":1,"provider":"local","machine":"gguf_factory-1","price_micros_per_hour":0,"ttl_s":30.0,"expires_at":"2026-11-25T10:48:48.705240Z"}}');
INSERT INTO "inbox" VALUES('01a21252-3354-7059-ab4f-e8946a2c19fc','84da792793424f866783cf65f8648e8ac5cb4cab63e5dceb1c88ce9335a46970','{"id": "01a21252-3354-7059-ab4f-e8946a2c19fc", "timestamp": "2026-11-25T10:48:26.707646Z", "sender": "gguf_factory-1", "recipient": null, "type": "lease.renew", "data": {"job": "old-1", "lease": "01a21251-b5af-7911-b7b4-e91c13690d36", "fence": 1}, "priority": 1, "deadline": "2026-11-25T10:48:34.707646Z", "traceparent": "00-2765749b67e133a1bcd8e46b702cd052-ab1e93722f105236-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'30316132313235322D333335342D373035392D616234662D653839343661326331396663',1.7956037067357070446e+09,1.7956037067357070446e+09,0,'done','{"jsonrpc":"2.0","id":"01a21252-3354-7059-ab4f-e8946a2c19fc","result":{"job":"old-1","lease":"01a21251-b5af-7911-b7b4-e91c13690d36","fence":1,"provider":"local","machine":"gguf_factory-1","price_micros_per_hour":0,"ttl_s":30.0,"expires_at":"2026-11-25T10:48:56.735707Z"}}');
CREATE TABLE leases (
    job TEXT PRIMARY KEY,            -- a job has one holder at most
    lease TEXT NOT NULL UNIQUE,
    fence INTEGER NOT NULL,
    machine TEXT NOT NULL,
    memory_bytes INTEGER NOT NULL,   -- what the job may take of the machine
    price_micros_per_hour INTEGER NOT NULL,
    expires_at REAL NOT NULL         -- Unix time
) WITHOUT ROWID;
INSERT INTO "leases" VALUES('old-1','01a21251-b5af-7911-b7b4-e91c13690d36',1,'gguf_factory-1',798767872,0,1.7956037367357070446e+09);
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
CREATE TABLE quotes (                -- offer.quote calls that wait for a factory
    message TEXT PRIMARY KEY,
    request TEXT NOT NULL            -- the QuoteRequest as JSON
) WITHOUT ROWID;
CREATE TABLE timers (
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        due REAL NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (name, key)
    ) WITHOUT ROWID;
INSERT INTO "timers" VALUES('lease','old-1',1.7956037367357070446e+09,'{}');
CREATE TABLE versions (component TEXT PRIMARY KEY, version INTEGER);
INSERT INTO "versions" VALUES('bus',1);
INSERT INTO "versions" VALUES('agent',2);
CREATE TABLE waiting (               -- lease.request calls that are not answered
    message TEXT PRIMARY KEY,
    job TEXT NOT NULL,
    request TEXT NOT NULL            -- the LeaseRequest as JSON
) WITHOUT ROWID;
CREATE INDEX inbox_pending ON inbox (priority DESC, received_at) WHERE state = 'pending';
CREATE INDEX inbox_done ON inbox (received_at) WHERE state = 'done';
CREATE INDEX outbox_due ON outbox (next_at);
CREATE INDEX outbox_key ON outbox (key, method);
CREATE INDEX leases_expiry ON leases (expires_at);
CREATE INDEX waiting_job ON waiting (job);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('publications',5);
COMMIT;
