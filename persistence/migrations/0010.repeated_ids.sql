-- A provider may give an id twice: its trouble, which must not keep a task of ours from being written.
DROP INDEX predictions_external;
CREATE INDEX predictions_external ON predictions (provider, external_id) WHERE external_id IS NOT NULL;
