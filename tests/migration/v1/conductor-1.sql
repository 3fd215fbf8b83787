BEGIN TRANSACTION;
CREATE TABLE cancels (job TEXT NOT NULL, call TEXT NOT NULL, PRIMARY KEY (job, call)) WITHOUT ROWID;
CREATE TABLE events (
        stream TEXT NOT NULL,
        seq INTEGER NOT NULL,
        type TEXT NOT NULL,
        data TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (stream, seq)
    ) WITHOUT ROWID;
INSERT INTO "events" VALUES('old-1',1,'submitted','{"request": {"domain": "time_management", "dataset": "/ground/rows.jsonl", "eval_dataset": null, "tier": null, "base": null, "profile": "edge", "priority": 1, "quantisation": null, "budget_usd": null, "parameters": {"max_steps": 20, "batch_size": 6, "sequence_length": 512}}}',1.79560367067864799501e+09);
INSERT INTO "events" VALUES('old-1',2,'routed','{"domain": "time_management", "tier": "tiny", "base": "/ground/base"}',1.79560367067864799501e+09);
INSERT INTO "events" VALUES('old-1',3,'planned','{"plan": {"rows": 52, "held_out_rows": 8, "tokens": 4921, "steps": 20, "parameters": {"batch_size": 6, "lora_r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "max_steps": 20, "max_epochs": null, "max_tokens": null, "sequence_length": 512, "learning_rate": 0.001, "warmup_steps": 1, "weight_decay": 0.01, "save_steps": 1, "control_share": 0.0, "quantisation": "Q4_K_M", "seed": 42, "dataset_sha256": "003a741b5d85002645c8c24f06b9a6730f4c6d5d8c8e6e80336f9b8f04e5705a"}, "base_parameters": 3671296, "file_bytes": 2861118, "disk_bytes": 100960380, "memory_bytes": 798767872, "seconds_p50": 75.37310383657626, "seconds_p90": 188.43275959144066, "warnings": []}}',1.79560367411503791807e+09);
INSERT INTO "events" VALUES('old-1',4,'quoted','{"offer": {"provider": "local", "machine": "gguf_factory-1", "price_micros_per_hour": 0, "seconds_p50": 75.37310383657626, "seconds_p90": 188.43275959144066, "cost_p50_micros": 0, "cost_p90_micros": 0, "reservation_micros": 0}, "rejected": {}}',1.7956036742420020103e+09);
INSERT INTO "events" VALUES('old-1',5,'reserved','{"reservation": "old-1:budget.reserve", "amount_micros": 0}',1.79560367439380192755e+09);
INSERT INTO "events" VALUES('old-1',6,'provisioning','{"attempt": 1}',1.79560367439380192755e+09);
INSERT INTO "events" VALUES('old-1',7,'leased','{"lease": {"job": "old-1", "lease": "01a21251-b5af-7911-b7b4-e91c13690d36", "fence": 1, "provider": "local", "machine": "gguf_factory-1", "price_micros_per_hour": 0, "ttl_s": 30.0, "expires_at": "2026-11-25T10:48:24.542690Z"}}',1.79560367458993792528e+09);
INSERT INTO "events" VALUES('old-1',8,'stage_started','{"stage": "plan", "attempt": 1}',1.79560367590565204617e+09);
INSERT INTO "events" VALUES('old-1',9,'stage_done','{"stage": "plan", "seconds": 1.556, "attempt": 1, "results": {"base": "/ground/base", "uncalibrated_seconds": 75.37310383657626}}',1795603677.48868);
INSERT INTO "events" VALUES('old-1',10,'stage_started','{"stage": "data", "attempt": 1}',1.79560367759188199048e+09);
INSERT INTO "events" VALUES('old-1',11,'stage_done','{"stage": "data", "seconds": 17.005, "attempt": 1, "results": {"rows": 52, "held_out_rows": 8, "duplicates": 0, "withheld": 0, "held_out_unused": 0, "tokens": 4921, "samples": 52, "packed_rows": 11, "fill": 0.8737571022727273, "truncated": 0, "skipped": 0, "supervised_tokens": 3780, "control_tokens": 4921, "control_samples": 52, "control_packed_rows": 11, "control_fill": 0.8737571022727273, "control_truncated": 0, "control_skipped": 0, "control_supervised_tokens": 3780, "held_out_tokens": 671, "held_out_samples": 8, "held_out_packed_rows": 2, "held_out_fill": 0.6552734375, "held_out_truncated": 0, "held_out_skipped": 0, "held_out_supervised_tokens": 531, "overlap": 0.0}}',1.7956036945112040043e+09);
INSERT INTO "events" VALUES('old-1',12,'stage_started','{"stage": "train", "attempt": 1}',1.79560369462219095223e+09);
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
INSERT INTO "inbox" VALUES('old-1:route','a95abafe393025c062d4ae659e06b19510f00564f83daa8e55977a1ec604e5ea','{"id": "old-1:route", "timestamp": "2026-11-25T10:47:50.633660Z", "sender": "router-1", "recipient": null, "type": "train.route", "data": {"job": "old-1", "digest": "5bfa9fdac6a6d0b7c58a773fc659fc50e5dd1e68fe8b0f1a5aca950b0af1f22d", "request": {"domain": "time_management", "dataset": "/ground/rows.jsonl", "eval_dataset": null, "tier": null, "base": null, "profile": "edge", "priority": 1, "quantisation": null, "budget_usd": null, "parameters": {"max_steps": 20, "batch_size": 6, "sequence_length": 512}}, "route": {"domain": "time_management", "category": "daily_life", "tier": "tiny", "base": "/ground/base", "voice": "professional", "empathy": "high", "quality_floor": 85.0, "safety_critical": false}}, "priority": 1, "deadline": null, "traceparent": "00-70f17d72585d3a63109fbfaefb9f8d34-619e8819941f50c7-01", "generated_id": false}',1,'meetara/v1/lab/reply/router-1',X'6F6C642D313A726F757465',1.79560367067864799501e+09,1.79560367067864799501e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:route","result":{"job":"old-1","state":"reserved","domain":"time_management","tier":"tiny","base":"/ground/base","message":"watch it: meetara watch old-1"}}');
INSERT INTO "inbox" VALUES('old-1:1:gguf_factory-1:1','0fb58ee37b69bf88f898716525863e61d43002e0284b1e5c0d5431f6bd582aed','{"id": "old-1:1:gguf_factory-1:1", "timestamp": "2026-11-25T10:47:55.893294Z", "sender": "gguf_factory-1", "recipient": null, "type": "job.report", "data": {"job": "old-1", "fence": 1, "kind": "stage_started", "stage": "plan", "seconds": null, "artefacts": [], "gates": {}, "results": {}, "reason": "", "retry": "never"}, "priority": 1, "deadline": null, "traceparent": "00-b4ce0ae209c709efe6ce08e5cf5822fc-c146641c952ac190-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'6F6C642D313A313A676775665F666163746F72792D313A31',1.79560367590565204617e+09,1.79560367590565204617e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:1:gguf_factory-1:1","result":{}}');
INSERT INTO "inbox" VALUES('old-1:1:gguf_factory-1:2','fa63b7063183410ac7f925f845dd103461000e24000efd78fc6cd1567ee457f8','{"id": "old-1:1:gguf_factory-1:2", "timestamp": "2026-11-25T10:47:57.486744Z", "sender": "gguf_factory-1", "recipient": null, "type": "job.report", "data": {"job": "old-1", "fence": 1, "kind": "stage_done", "stage": "plan", "seconds": 1.556, "artefacts": [], "gates": {}, "results": {"base": "/ground/base", "uncalibrated_seconds": 75.37310383657626}, "reason": "", "retry": "never"}, "priority": 1, "deadline": null, "traceparent": "00-1b3adc01bd5e07e7187c8dac8b16ec6b-971e53a7ea48527d-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'6F6C642D313A313A676775665F666163746F72792D313A32',1795603677.48868,1795603677.48868,0,'done','{"jsonrpc":"2.0","id":"old-1:1:gguf_factory-1:2","result":{}}');
INSERT INTO "inbox" VALUES('old-1:1:gguf_factory-1:3','c0bc9a899078ca6b8224d9a150fce5351f01a0dc145c426f5da7eac52497719a','{"id": "old-1:1:gguf_factory-1:3", "timestamp": "2026-11-25T10:47:57.487211Z", "sender": "gguf_factory-1", "recipient": null, "type": "job.report", "data": {"job": "old-1", "fence": 1, "kind": "stage_started", "stage": "data", "seconds": null, "artefacts": [], "gates": {}, "results": {}, "reason": "", "retry": "never"}, "priority": 1, "deadline": null, "traceparent": "00-c6a8b8fe9f016f2d9f727ea6e9b5d1c2-b9b4d175ed8be778-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'6F6C642D313A313A676775665F666163746F72792D313A33',1.79560367759188199048e+09,1.79560367759188199048e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:1:gguf_factory-1:3","result":{}}');
INSERT INTO "inbox" VALUES('old-1:1:gguf_factory-1:4','809b924033ec7680cbafe7004b8362f632d934ec736cd35153a56565456ffbc4','{"id": "old-1:1:gguf_factory-1:4", "timestamp": "2026-11-25T10:48:14.509372Z", "sender": "gguf_factory-1", "recipient": null, "type": "job.report", "data": {"job": "old-1", "fence": 1, "kind": "stage_done", "stage": "data", "seconds": 17.005, "artefacts": [], "gates": {}, "results": {"rows": 52, "held_out_rows": 8, "duplicates": 0, "withheld": 0, "held_out_unused": 0, "tokens": 4921, "samples": 52, "packed_rows": 11, "fill": 0.8737571022727273, "truncated": 0, "skipped": 0, "supervised_tokens": 3780, "control_tokens": 4921, "control_samples": 52, "control_packed_rows": 11, "control_fill": 0.8737571022727273, "control_truncated": 0, "control_skipped": 0, "control_supervised_tokens": 3780, "held_out_tokens": 671, "held_out_samples": 8, "held_out_packed_rows": 2, "held_out_fill": 0.6552734375, "held_out_truncated": 0, "held_out_skipped": 0, "held_out_supervised_tokens": 531, "overlap": 0.0}, "reason": "", "retry": "never"}, "priority": 1, "deadline": null, "traceparent": "00-d08af8df52ef8f39d36d5a7e30d3d8d0-cabcbd102de4258f-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'6F6C642D313A313A676775665F666163746F72792D313A34',1.7956036945112040043e+09,1.7956036945112040043e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:1:gguf_factory-1:4","result":{}}');
INSERT INTO "inbox" VALUES('old-1:1:gguf_factory-1:5','1c326c7c55e23b87d59186fa5f02ab0f1e21e22110bd448ad3c16f74dad5e0b3','{"id": "old-1:1:gguf_factory-1:5", "timestamp": "2026-11-25T10:48:14.509840Z", "sender": "gguf_factory-1", "recipient": null, "type": "job.report", "data": {"job": "old-1", "fence": 1, "kind": "stage_started", "stage": "train", "seconds": null, "artefacts": [], "gates": {}, "results": {}, "reason": "", "retry": "never"}, "priority": 1, "deadline": null, "traceparent": "00-376860ad17145fef7eb92b32e2306d1a-f1e179f88409bb41-01", "generated_id": false}',1,'meetara/v1/lab/reply/gguf_factory-1',X'6F6C642D313A313A676775665F666163746F72792D313A35',1.79560369462219095223e+09,1.79560369462219095223e+09,0,'done','{"jsonrpc":"2.0","id":"old-1:1:gguf_factory-1:5","result":{}}');
CREATE TABLE jobs (
    job TEXT PRIMARY KEY,
    record TEXT NOT NULL,          -- JobRecord as JSON: the fold of the job's events
    route_call TEXT NOT NULL,      -- the train.route call, answered when the job is admitted or refused
    submitted_at REAL NOT NULL
);
INSERT INTO "jobs" VALUES('old-1','{"job":"old-1","digest":"5bfa9fdac6a6d0b7c58a773fc659fc50e5dd1e68fe8b0f1a5aca950b0af1f22d","request":{"domain":"time_management","dataset":"/ground/rows.jsonl","eval_dataset":null,"tier":null,"base":null,"profile":"edge","priority":1,"quantisation":null,"budget_usd":null,"parameters":{"max_steps":20,"batch_size":6,"sequence_length":512}},"route":{"domain":"time_management","category":"daily_life","tier":"tiny","base":"/ground/base","voice":"professional","empathy":"high","quality_floor":85.0,"safety_critical":false},"submitted_at":"2026-11-25T10:47:50.678648Z","updated_at":"2026-11-25T10:48:14.622191Z","state":"training","stage":"train","attempt":1,"failures":0,"avoid":[],"plan":{"rows":52,"held_out_rows":8,"tokens":4921,"steps":20,"parameters":{"batch_size":6,"lora_r":8,"lora_alpha":16.0,"lora_dropout":0.05,"max_steps":20,"max_epochs":null,"max_tokens":null,"sequence_length":512,"learning_rate":0.001,"warmup_steps":1,"weight_decay":0.01,"save_steps":1,"control_share":0.0,"quantisation":"Q4_K_M","seed":42,"dataset_sha256":"003a741b5d85002645c8c24f06b9a6730f4c6d5d8c8e6e80336f9b8f04e5705a"},"base_parameters":3671296,"file_bytes":2861118,"disk_bytes":100960380,"memory_bytes":798767872,"seconds_p50":75.37310383657626,"seconds_p90":188.43275959144066,"warnings":[]},"offer":{"provider":"local","machine":"gguf_factory-1","price_micros_per_hour":0,"seconds_p50":75.37310383657626,"seconds_p90":188.43275959144066,"cost_p50_micros":0,"cost_p90_micros":0,"reservation_micros":0},"reservation":"old-1:budget.reserve","lease":{"job":"old-1","lease":"01a21251-b5af-7911-b7b4-e91c13690d36","fence":1,"provider":"local","machine":"gguf_factory-1","price_micros_per_hour":0,"ttl_s":30.0,"expires_at":"2026-11-25T10:48:24.542690Z"},"leased_at":"2026-11-25T10:47:54.589938Z","fence":1,"fenced_reports":0,"cancelling":false,"spent_micros":0,"artefacts":[],"gates":{},"results":{"base":"/ground/base","uncalibrated_seconds":75.37310383657626,"rows":52,"held_out_rows":8,"duplicates":0,"withheld":0,"held_out_unused":0,"tokens":4921,"samples":52,"packed_rows":11,"fill":0.8737571022727273,"truncated":0,"skipped":0,"supervised_tokens":3780,"control_tokens":4921,"control_samples":52,"control_packed_rows":11,"control_fill":0.8737571022727273,"control_truncated":0,"control_skipped":0,"control_supervised_tokens":3780,"held_out_tokens":671,"held_out_samples":8,"held_out_packed_rows":2,"held_out_fill":0.6552734375,"held_out_truncated":0,"held_out_skipped":0,"held_out_supervised_tokens":531,"overlap":0.0},"reason":null}','old-1:route',1.79560367067864799501e+09);
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
CREATE INDEX jobs_by_time ON jobs (submitted_at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('publications',24);
COMMIT;
