-- Users, the model registry, tasks with their log and snapshots, predictions, outputs, webhooks.
-- The queue's tables are in persistence/jobs/migrations.

-- time-ordered ids (RFC 9562, version 7), so that inserts stay local in their indices; for rows that are born here
CREATE FUNCTION uuid_of_now() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                placing substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
            52, 1), 53, 1),
        'hex')::uuid
$$;

CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT uuid_of_now(),
    external_id text NOT NULL UNIQUE,
    name text,
    email text,
    preferences jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE models (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    provider text NOT NULL,
    owner text,
    slug text NOT NULL,
    version text NOT NULL,
    category text NOT NULL CHECK (category IN ('image', 'video', 'audio', 'text', 'code')),
    description text,
    documentation_url text,
    input_schema jsonb NOT NULL DEFAULT '{}',
    defaults jsonb NOT NULL DEFAULT '{}',
    fallbacks uuid[] NOT NULL DEFAULT '{}',
    price jsonb NOT NULL DEFAULT '{}',
    settings jsonb NOT NULL DEFAULT '{}',
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, version)
);
-- an absent owner is a value like any other here: two models without one must not share the rest
CREATE UNIQUE INDEX models_origin ON models (provider, coalesce(owner, ''), slug, version);
CREATE INDEX models_active ON models (is_active, name);

CREATE TABLE tasks (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    model_id uuid NOT NULL,  -- no foreign key: a task outlives the model that it used
    model text NOT NULL,
    provider text NOT NULL,
    status text NOT NULL CHECK (status IN ('queued', 'processing', 'completed', 'failed', 'cancelled')),
    priority smallint NOT NULL CHECK (priority BETWEEN 0 AND 9),
    queue text NOT NULL,
    job_id uuid,
    input jsonb NOT NULL,
    response text,
    progress double precision NOT NULL CHECK (progress BETWEEN 0 AND 1),
    estimated_duration_seconds double precision,
    attempt integer NOT NULL,
    max_attempts integer NOT NULL,
    version bigint NOT NULL,
    usage jsonb,
    error_code text,
    error_message text,
    error_action text,
    error_retryable boolean,
    will_retry_at timestamptz,
    idempotency_key text,
    trace_parent text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    completed_at timestamptz,
    archived_at timestamptz
) WITH (fillfactor = 85);
CREATE INDEX tasks_history ON tasks (user_id, created_at DESC, id DESC);
CREATE INDEX tasks_status ON tasks (status) WHERE status IN ('queued', 'processing');
CREATE INDEX tasks_model ON tasks (model_id);
CREATE INDEX tasks_unfinished ON tasks (priority, created_at, id) WHERE status IN ('queued', 'processing');
CREATE INDEX tasks_finished ON tasks (completed_at) WHERE archived_at IS NULL AND completed_at IS NOT NULL;
CREATE INDEX tasks_archived ON tasks (archived_at) WHERE archived_at IS NOT NULL;
CREATE UNIQUE INDEX tasks_idempotency ON tasks (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE task_events (
    task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    seq bigint NOT NULL CHECK (seq > 0),
    type text NOT NULL,
    attempt integer NOT NULL,
    actor text NOT NULL CHECK (actor IN ('user', 'worker', 'operator', 'system')),
    payload jsonb NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (task_id, seq)
);

CREATE TABLE task_snapshots (
    task_id uuid PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    seq bigint NOT NULL,
    schema_version integer NOT NULL,
    state jsonb NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- what was found when a row had been changed behind the server's back; the server's own state was written over it
CREATE TABLE task_conflicts (
    id uuid PRIMARY KEY DEFAULT uuid_of_now(),
    task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    expected_version bigint NOT NULL,
    found_version bigint NOT NULL,
    found jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX task_conflicts_task ON task_conflicts (task_id);

CREATE TABLE predictions (
    id uuid PRIMARY KEY,
    task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    attempt integer NOT NULL,
    provider text NOT NULL,
    external_id text,
    status text NOT NULL,
    input jsonb NOT NULL DEFAULT '{}',
    output jsonb,
    logs text,
    metrics jsonb,
    error_message text,
    cost_estimate double precision,
    tokens bigint,
    webhook_received_at timestamptz,
    provider_created_at timestamptz,
    provider_started_at timestamptz,
    provider_completed_at timestamptz,
    duration double precision GENERATED ALWAYS AS
        (extract(epoch FROM provider_completed_at - provider_started_at)) STORED,
    created_by text NOT NULL DEFAULT 'worker',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX predictions_task ON predictions (task_id, attempt);
CREATE UNIQUE INDEX predictions_external ON predictions (provider, external_id) WHERE external_id IS NOT NULL;
CREATE VIEW replicate_predictions AS SELECT * FROM predictions WHERE provider = 'replicate';

CREATE TABLE outputs (
    id uuid PRIMARY KEY DEFAULT uuid_of_now(),
    task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    index integer NOT NULL,
    type text NOT NULL CHECK (type IN ('image', 'video', 'audio', 'text', 'file')),
    format text NOT NULL,
    cloud_url text NOT NULL,
    object_name text NOT NULL DEFAULT '',
    temporary_url text,
    content_type text NOT NULL,
    file_size_bytes bigint NOT NULL,
    sha256 text NOT NULL,
    duration_seconds double precision,
    dimensions jsonb,
    metadata jsonb,
    uploaded_at timestamptz DEFAULT now(),
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (task_id, index)
);

CREATE TABLE webhook_events (
    id uuid PRIMARY KEY DEFAULT uuid_of_now(),
    webhook_id text NOT NULL UNIQUE,
    task_id uuid,
    prediction_external_id text NOT NULL,
    event_type text NOT NULL CHECK (event_type IN ('start', 'output', 'logs', 'completed', 'failed')),
    payload jsonb NOT NULL,
    processed boolean NOT NULL DEFAULT false,
    processed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_events_unprocessed ON webhook_events (created_at) WHERE NOT processed;
CREATE INDEX webhook_events_prediction ON webhook_events (prediction_external_id);
