-- Results that wait to be stored, outputs by the attempt that stored them, outputs whose files are gone, and how far the
-- search for files that nobody knows of has come.

-- A prediction whose end is not recorded, since its result lies on a server's disk until the store takes it.
ALTER TABLE predictions
    ADD COLUMN held_by text,
    ADD COLUMN held_since timestamptz;

-- Rows of attempts that failed are void, and stay until the next attempt writes over them: a reader compares.
ALTER TABLE outputs
    ADD COLUMN attempt integer NOT NULL DEFAULT 0,
    ADD COLUMN removed_at timestamptz;
UPDATE outputs o SET attempt = t.attempt FROM tasks t WHERE t.id = o.task_id;
ALTER TABLE outputs ALTER COLUMN attempt DROP DEFAULT;

DROP INDEX outputs_expiry;
CREATE INDEX outputs_expiry ON outputs (expires_at) WHERE expires_at IS NOT NULL AND removed_at IS NULL;

CREATE TABLE artifact_sweeps (
    store text PRIMARY KEY,
    reached text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
