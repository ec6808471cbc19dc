"""Fills a database with tasks as years of use leave them: few heavy users, most tasks finished, all that hangs on them.

Plain SQL, so that the server makes the rows: a million tasks with their events, predictions, outputs, deliveries, jobs
and snapshots take about three minutes.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg

USERS: LiteralString = """
    INSERT INTO users (external_id) SELECT 'user-' || n FROM generate_series(0, {users} - 1) n ON CONFLICT DO NOTHING
"""
# user-0 has about a tenth of all tasks; the latest half percent are unfinished
TASKS: LiteralString = """
    CREATE UNLOGGED TABLE filler AS
    SELECT encode(overlay(uuid_send(gen_random_uuid())
               PLACING substring(int8send((extract(epoch FROM at) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
               'hex')::uuid AS id,
           n, at, floor({users} * power(random(), 4))::int AS who, 'model-' || floor(30 * random() ^ 2)::int AS model,
           gen_random_uuid() AS attempt, gen_random_uuid() AS job,
           CASE WHEN n <= {tasks} * 0.005 THEN CASE WHEN n % 10 = 0 THEN 'processing' ELSE 'queued' END
                WHEN random() < 0.025 THEN 'failed' WHEN random() < 0.01 THEN 'cancelled' ELSE 'completed' END AS status
    FROM (SELECT n, now() - (n * interval '1 year' / {tasks}) AS at FROM generate_series(1, {tasks}) n) born;
    INSERT INTO tasks (id, user_id, model_id, model, provider, status, priority, queue, job_id, input, response,
        progress, attempt, max_attempts, version, idempotency_key, created_at, started_at, completed_at, archived_at)
    SELECT f.id, u.id, md5(f.model)::uuid, f.model, 'replicate', f.status, n % 10, 'default', f.job,
        jsonb_build_object('prompt', 'a picture of ' || n), CASE WHEN f.status = 'completed' THEN 'words ' || n END,
        0.5, 1, 3, CASE WHEN f.status = 'queued' THEN 1 ELSE 3 END, CASE WHEN n % 3 = 0 THEN 'key-' || n END, f.at,
        f.at,
        CASE WHEN f.status NOT IN ('queued', 'processing') THEN f.at + interval '9 s' END,
        CASE WHEN n > {tasks} * 0.9 THEN now() - interval '1 day' END
    FROM filler f JOIN users u ON u.external_id = 'user-' || f.who;
"""
EVENTS: LiteralString = """
    INSERT INTO task_events (task_id, seq, type, attempt, actor, payload, at)
    SELECT f.id, 1, 'created', 0, 'user', jsonb_build_object('user', 'user-' || f.who, 'model_id', md5(f.model)::uuid,
        'model', f.model, 'provider', 'replicate', 'input', '{{}}'::jsonb, 'job_id', f.job), f.at FROM filler f;
    INSERT INTO task_events (task_id, seq, type, attempt, actor, payload, at)
    SELECT f.id, s, CASE s WHEN 2 THEN 'started' WHEN 3 THEN 'responded' ELSE f.status END, 1, 'worker',
        CASE s WHEN 2 THEN '{{"provider": "replicate", "model": "m"}}' WHEN 3 THEN '{{"text": "words"}}'
               ELSE '{{"duration_seconds": 9.0}}' END::jsonb, f.at + s * interval '1 s'
    FROM filler f, generate_series(2, 4) s
    WHERE f.status = 'completed' OR f.status = 'processing' AND s < 4;
"""
REST: LiteralString = """
    INSERT INTO predictions (id, task_id, attempt, provider, external_id, status, cost_estimate, provider_started_at,
        provider_completed_at, created_at)
    SELECT attempt, id, 1, 'replicate', 'ext-' || n, 'succeeded', 0.001, at,
        CASE WHEN status <> 'processing' THEN at + interval '8 s' END, at
    FROM filler WHERE status <> 'queued';
    INSERT INTO outputs (task_id, attempt, index, type, format, cloud_url, object_name, content_type, file_size_bytes,
        sha256, expires_at)
    SELECT id, 1, 0, 'image', 'png', 'https://x', 'outputs/' || n, 'image/png', 1, 'ab', at + interval '400 days'
    FROM filler WHERE status = 'completed' AND n % 3 = 0;
    INSERT INTO webhook_events (webhook_id, task_id, prediction_external_id, event_type, payload, processed, created_at)
    SELECT 'msg-' || n, id, 'ext-' || n, 'completed', '{{}}', true, now() - n * interval '5 days' / {tasks}
    FROM filler WHERE n % 3 = 0;
    INSERT INTO jobs (id, state, queue, worker, args, task_id, user_key, priority, turn, attempt, completed_at, home,
        scheduled_at, created_at)
    SELECT job, (CASE WHEN n <= {tasks} * 0.005 THEN 'available' WHEN n % 50 = 0 THEN 'discarded'
                      ELSE 'completed' END)::job_state,
        'default', 'task', '{{}}', id, 'user-' || who, n % 10, n, 1,
        CASE WHEN n > {tasks} * 0.005 THEN at END, 'home', at, at
    FROM filler WHERE n <= {tasks} * 0.3;
    INSERT INTO task_snapshots (task_id, seq, schema_version, state)
    SELECT id, 1, 99, '{{}}' FROM filler WHERE status = 'processing';
    DROP TABLE filler;
"""


def fill(conninfo: str, tasks: int, users: int) -> None:
    """Blocking. The tables should be empty of tasks. No statistics are gathered."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        # what the rows refer to is made first; looking it up four million times is not what is to be seen
        connection.execute(
            "SET session_replication_role = replica; SET synchronous_commit = off; SET work_mem = '256MB'"
        )
        for part in (USERS, TASKS, EVENTS, REST):
            connection.execute(part.format(tasks=tasks, users=users).encode())
