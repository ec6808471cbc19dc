-- History by status or model: of a user with a hundred thousand tasks, the few that are wanted.
CREATE INDEX tasks_history_status ON tasks (user_id, status, created_at DESC, id DESC);
CREATE INDEX tasks_history_model ON tasks (user_id, model, created_at DESC, id DESC);
