-- What is left when a task is deleted: the files that are still to go, and what its attempts had used.

-- Noted in the transaction that deletes the rows which name them, so that no file is forgotten.
CREATE TABLE objects_to_delete (
    name text PRIMARY KEY,
    failures integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX objects_to_delete_due ON objects_to_delete (due_at);

CREATE TABLE usage_of_deleted (
    user_id uuid NOT NULL REFERENCES users (id),
    day date NOT NULL,
    model text NOT NULL,
    tasks bigint NOT NULL,
    attempts bigint NOT NULL,
    input_tokens bigint,
    output_tokens bigint,
    predict_seconds double precision,
    cost double precision,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, day, model)
);

CREATE INDEX outputs_expiry ON outputs (expires_at) WHERE expires_at IS NOT NULL;
