-- The servers that share this database, each with a lease; where each task lives; when crons last ran.

CREATE TABLE servers (
    name       text PRIMARY KEY,
    boot       uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- The server that keeps the job's task in memory: who made the job, later who claimed it last.
ALTER TABLE jobs ADD COLUMN home text;

-- Jobs held back by hand; few.
CREATE INDEX jobs_suspended ON jobs (queue) WHERE state = 'suspended';

-- The last time of each cron for which a job was made, so that it is made once whatever servers there are.
CREATE TABLE job_crons (
    name       text PRIMARY KEY,
    made_for   timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
