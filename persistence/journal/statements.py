"""The SQL of the journal. Each statement takes the rows of a whole batch as one jsonb parameter.

Rows are taken in one order (of what must be unique, else of their ids), here as in the queue's statements, so that two
writers cannot block each other in a circle. Who counts the affected rows knows whether all was written; `EXAMINE` tells
why one was not.

Every row is looked up by its key, whatever the tables' statistics say: the plans are kept, and may have been made when
the tables were empty. So what is given is said to be few (FEW), and no lookup can be turned into a join.
"""

from __future__ import annotations

from typing import LiteralString

_TASK: LiteralString = """
    id uuid, "user" text, model_id uuid, model text, provider text, input jsonb, created_at float8, priority smallint,
    max_attempts int, queue text, job_id uuid, status text, attempt int, seq bigint, progress float8,
    eta_seconds float8, text text, usage jsonb, error jsonb, started_at float8, completed_at float8,
    idempotency_key text, trace_parent text, expected bigint, reopens boolean
"""

FEW: LiteralString = "BETWEEN 0 AND 9000000000000000000"
"""Always true of a number of ours. PostgreSQL reckons that one row in two hundred is so."""

MARK: LiteralString = "SELECT pg_current_xact_id()::text, set_config('lock_timeout', %s, true)"

# Which of these rows can be had, or are not there at all.
FREE_TASKS: LiteralString = """
    WITH free AS (SELECT id FROM tasks WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
    SELECT id FROM free
    UNION ALL
    SELECT wanted.id FROM unnest(%s::uuid[]) AS wanted(id) WHERE NOT EXISTS (SELECT FROM tasks WHERE id = wanted.id)
"""
FREE_JOBS: LiteralString = FREE_TASKS.replace("tasks", "jobs")

ADD_USERS: LiteralString = """
    INSERT INTO users (external_id)
    SELECT DISTINCT b."user" FROM jsonb_to_recordset(%s) AS b("user" text)
    WHERE NOT EXISTS (SELECT FROM users u WHERE u.external_id = b."user") ORDER BY 1
    ON CONFLICT DO NOTHING
"""

# Passed over: an id or an idempotency key that is taken.
ADD_TASKS: LiteralString = f"""
    INSERT INTO tasks (id, user_id, model_id, model, provider, status, priority, queue, job_id, input, response,
        progress, estimated_duration_seconds, attempt, max_attempts, version, usage,
        error_code, error_message, error_action, error_retryable, will_retry_at,
        idempotency_key, trace_parent, created_at, started_at, completed_at)
    SELECT b.id, u.id, b.model_id, b.model, b.provider, b.status, b.priority, b.queue, b.job_id, b.input,
        nullif(b.text, ''), b.progress, b.eta_seconds, b.attempt, b.max_attempts, b.seq, b.usage,
        b.error->>'code', b.error->>'message', b.error->>'action', (b.error->>'retryable')::boolean,
        to_timestamp((b.error->>'will_retry_at')::float8),
        b.idempotency_key, b.trace_parent, to_timestamp(b.created_at), to_timestamp(b.started_at),
        to_timestamp(b.completed_at)
    FROM jsonb_to_recordset(%s) AS b({_TASK}) JOIN users u ON u.external_id = b."user"
    WHERE b.seq {FEW}
    ORDER BY b."user", b.idempotency_key, b.id
    ON CONFLICT DO NOTHING
"""

# Passed over: a row that is not there, that is finished, or whose log does not end where these events begin.
# A row that somebody else has changed is kept in task_conflicts, and then overwritten: memory wins.
CHANGE_TASKS: LiteralString = f"""
    WITH b AS MATERIALIZED (SELECT * FROM jsonb_to_recordset(%s) AS b({_TASK}) WHERE seq {FEW}),
    held AS MATERIALIZED (
        SELECT t.id, t.version, t.status, b.expected, b.reopens FROM tasks t JOIN b ON b.id = t.id
        ORDER BY t.id FOR NO KEY UPDATE OF t
    ), allowed AS MATERIALIZED (
        SELECT id, version, expected FROM held
        WHERE (status IN ('queued', 'processing') OR reopens)
          AND (SELECT true FROM task_events e WHERE e.task_id = held.id AND e.seq = held.expected LIMIT 1)
    ), surprises AS (
        INSERT INTO task_conflicts (task_id, expected_version, found_version, found)
        SELECT t.id, a.expected, a.version, to_jsonb(t) FROM allowed a JOIN tasks t USING (id)
        WHERE a.version <> a.expected
    )
    UPDATE tasks t SET
        status = b.status, priority = b.priority, queue = b.queue, job_id = b.job_id, response = nullif(b.text, ''),
        model_id = b.model_id, model = b.model, provider = b.provider,
        progress = b.progress, estimated_duration_seconds = b.eta_seconds, attempt = b.attempt,
        max_attempts = b.max_attempts, version = b.seq, usage = b.usage,
        error_code = b.error->>'code', error_message = b.error->>'message', error_action = b.error->>'action',
        error_retryable = (b.error->>'retryable')::boolean,
        will_retry_at = to_timestamp((b.error->>'will_retry_at')::float8),
        started_at = to_timestamp(b.started_at), completed_at = to_timestamp(b.completed_at), updated_at = now()
    FROM b JOIN allowed USING (id) WHERE t.id = b.id
"""

ADD_EVENTS: LiteralString = """
    INSERT INTO task_events (task_id, seq, type, attempt, actor, payload, at)
    SELECT task_id, seq, type, attempt, actor, payload, to_timestamp(at)
    FROM jsonb_to_recordset(%s)
        AS b(task_id uuid, seq bigint, type text, attempt int, actor text, payload jsonb, at float8)
    ORDER BY task_id, seq
    ON CONFLICT DO NOTHING
"""

# What is not known yet does not erase what is.
PUT_PREDICTIONS: LiteralString = """
    INSERT INTO predictions AS p (id, task_id, attempt, provider, external_id, status, input, output, logs, metrics,
        error_message, cost_estimate, tokens, input_tokens, output_tokens, predict_seconds, provider_started_at,
        provider_completed_at, held_by, held_since, in_doubt, duplicates)
    SELECT DISTINCT ON (id) id, task_id, attempt, provider, external_id, status, coalesce(input, '{}'), output, logs,
        metrics, error_message, (usage->>'cost')::float8,
        nullif(coalesce((usage->>'input_tokens')::bigint, 0) + coalesce((usage->>'output_tokens')::bigint, 0), 0),
        (usage->>'input_tokens')::bigint, (usage->>'output_tokens')::bigint, (usage->>'predict_seconds')::float8,
        to_timestamp(started_at), to_timestamp(completed_at), held_by, to_timestamp(held_since),
        coalesce(in_doubt, false), duplicates
    FROM ROWS FROM (jsonb_to_recordset(%s)
        AS (id uuid, task_id uuid, attempt int, provider text, external_id text, status text, input jsonb,
            output jsonb, logs text, metrics jsonb, error_message text, usage jsonb, started_at float8,
            completed_at float8, held_by text, held_since float8, in_doubt boolean, duplicates int)) WITH ORDINALITY
    ORDER BY id, ordinality DESC
    ON CONFLICT (id) DO UPDATE SET
        external_id = coalesce(excluded.external_id, p.external_id), status = excluded.status,
        output = coalesce(excluded.output, p.output), logs = coalesce(excluded.logs, p.logs),
        metrics = coalesce(excluded.metrics, p.metrics),
        error_message = coalesce(excluded.error_message, p.error_message),
        cost_estimate = coalesce(excluded.cost_estimate, p.cost_estimate),
        tokens = coalesce(excluded.tokens, p.tokens),
        input_tokens = coalesce(excluded.input_tokens, p.input_tokens),
        output_tokens = coalesce(excluded.output_tokens, p.output_tokens),
        predict_seconds = coalesce(excluded.predict_seconds, p.predict_seconds),
        provider_started_at = coalesce(p.provider_started_at, excluded.provider_started_at),
        provider_completed_at = coalesce(excluded.provider_completed_at, p.provider_completed_at),
        held_by = coalesce(excluded.held_by, p.held_by), held_since = coalesce(p.held_since, excluded.held_since),
        in_doubt = excluded.in_doubt OR p.in_doubt, duplicates = coalesce(excluded.duplicates, p.duplicates),
        updated_at = now()
"""

PUT_OUTPUTS: LiteralString = """
    INSERT INTO outputs (task_id, attempt, index, type, format, cloud_url, object_name, temporary_url, content_type,
        file_size_bytes, sha256, duration_seconds, dimensions, metadata, expires_at)
    SELECT DISTINCT ON (task_id, index) task_id, attempt, index, type, format, content_url, coalesce(object_name, ''),
        temporary_url, content_type, file_size_bytes, sha256, duration_seconds, dimensions, metadata,
        to_timestamp(expires_at)
    FROM ROWS FROM (jsonb_to_recordset(%s)
        AS (task_id uuid, attempt int, index int, type text, format text, content_url text, object_name text,
            temporary_url text, content_type text, file_size_bytes bigint, sha256 text, duration_seconds float8,
            dimensions jsonb, metadata jsonb, expires_at float8)) WITH ORDINALITY
    ORDER BY task_id, index, ordinality DESC
    ON CONFLICT (task_id, index) DO UPDATE SET
        attempt = excluded.attempt, removed_at = NULL,
        type = excluded.type, format = excluded.format, cloud_url = excluded.cloud_url,
        object_name = excluded.object_name, temporary_url = excluded.temporary_url,
        content_type = excluded.content_type, file_size_bytes = excluded.file_size_bytes, sha256 = excluded.sha256,
        duration_seconds = excluded.duration_seconds, dimensions = excluded.dimensions, metadata = excluded.metadata,
        expires_at = excluded.expires_at, updated_at = now()
"""

# One line an entry: what its task's row, its first event's place and its idempotency key hold now.
EXAMINE: LiteralString = """
    SELECT b.n, t.status,
        e.type IS NOT NULL AS taken,
        e.type = b.type AND e.at = to_timestamp(b.at) AND e.actor = b.actor AND e.attempt = b.attempt AS same,
        b.first = 1 OR EXISTS (SELECT FROM task_events p WHERE p.task_id = b.id AND p.seq = b.first - 1) AS follows,
        (SELECT k.id FROM tasks k JOIN users u ON u.id = k.user_id
         WHERE u.external_id = b."user" AND k.idempotency_key = b.key) AS holder
    FROM jsonb_to_recordset(%s)
        AS b(n int, id uuid, "user" text, key text, first bigint, type text, at float8, actor text, attempt int)
    LEFT JOIN tasks t ON t.id = b.id
    LEFT JOIN task_events e ON e.task_id = b.id AND e.seq = b.first
"""
