-- Users who have been shut out by an operator. Known to every server that shares the database.

CREATE TABLE revocations (
    external_id text PRIMARY KEY,
    revoked_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
