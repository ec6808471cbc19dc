-- What each attempt used, one figure a column, and the way from a user to the attempts of the last days.
ALTER TABLE predictions
    ADD COLUMN input_tokens bigint,
    ADD COLUMN output_tokens bigint,
    ADD COLUMN predict_seconds double precision;

-- An attempt never ends after its task: a user's attempts since a day are those of the tasks that ended since, or run.
CREATE INDEX tasks_of_user_by_end ON tasks (user_id, (coalesce(completed_at, 'infinity')));
