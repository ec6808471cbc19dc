-- The job queue: its rows, its indices, and what operators set on a queue.
-- No foreign key to tasks: finished jobs and finished tasks are pruned on their own schedules.

CREATE TYPE job_state AS ENUM (
    'suspended', 'available', 'scheduled', 'executing', 'retryable', 'completed', 'cancelled', 'discarded'
);

CREATE TABLE jobs (
    id               uuid PRIMARY KEY,
    state            job_state NOT NULL DEFAULT 'available',
    queue            text NOT NULL DEFAULT 'default',
    worker           text NOT NULL,
    args             jsonb NOT NULL DEFAULT '{}',
    task_id          uuid,
    user_key         text NOT NULL DEFAULT '',
    priority         smallint NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    turn             bigint NOT NULL DEFAULT 0,
    attempt          integer NOT NULL DEFAULT 0,
    max_attempts     integer NOT NULL DEFAULT 20 CHECK (max_attempts > 0),
    rescues          integer NOT NULL DEFAULT 0,
    snoozes          integer NOT NULL DEFAULT 0,
    errors           jsonb NOT NULL DEFAULT '[]',
    unique_key       text,
    trace_parent     text,
    lease_token      uuid,
    lease_node       text,
    lease_boot       uuid,
    lease_expires_at timestamptz,
    scheduled_at     timestamptz NOT NULL DEFAULT now(),
    attempted_at     timestamptz,
    completed_at     timestamptz,
    cancelled_at     timestamptz,
    discarded_at     timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CHECK (attempt BETWEEN 0 AND max_attempts),
    CHECK (state <> 'executing' OR (lease_token IS NOT NULL AND lease_expires_at IS NOT NULL))
) WITH (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000,
    autovacuum_vacuum_cost_delay = 1
);

-- The line: a claim reads it from the front. A user's jobs take consecutive turns (fair queueing).
CREATE INDEX jobs_line ON jobs (queue, priority, turn, id) WHERE state = 'available';
-- The last turn of a user, when a job of theirs joins the line.
CREATE INDEX jobs_line_of_user ON jobs (queue, priority, user_key, turn) WHERE state = 'available';
CREATE INDEX jobs_due ON jobs (scheduled_at) INCLUDE (queue) WHERE state IN ('scheduled', 'retryable');
-- Held jobs are few (bounded by the limits). The expiry is left out, so that heartbeats stay heap-only updates.
CREATE INDEX jobs_held ON jobs (queue) WHERE state = 'executing';
CREATE INDEX jobs_completed ON jobs (completed_at) WHERE state = 'completed';
CREATE INDEX jobs_cancelled ON jobs (cancelled_at) WHERE state = 'cancelled';
CREATE INDEX jobs_discarded ON jobs (discarded_at) WHERE state = 'discarded';
-- Uniqueness holds among jobs that are not finished, by the index itself: no race, no lock.
CREATE UNIQUE INDEX jobs_unique_key ON jobs (unique_key)
    WHERE unique_key IS NOT NULL AND state NOT IN ('completed', 'cancelled', 'discarded');

CREATE TABLE job_queues (
    name         text PRIMARY KEY,
    paused       boolean NOT NULL DEFAULT false,
    local_limit  integer CHECK (local_limit >= 0),
    rate_tokens  double precision NOT NULL DEFAULT 0,
    rate_at      timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
