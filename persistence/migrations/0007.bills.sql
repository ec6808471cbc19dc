-- What a provider may still be at work on, or may have taken without our knowing, after its attempt was over: it is
-- looked after until nothing is in doubt. `duplicates`: calls of this attempt that were, or may have been, paid beside
-- the one that counts; null while there was no reason to think so. `beside` are the provider's ids of those that are known.
ALTER TABLE predictions
    ADD COLUMN in_doubt boolean NOT NULL DEFAULT false,
    ADD COLUMN duplicates integer,
    ADD COLUMN beside text[] NOT NULL DEFAULT '{}';
CREATE INDEX predictions_in_doubt ON predictions (provider, id) WHERE in_doubt OR provider_completed_at IS NULL;
CREATE INDEX predictions_beside ON predictions USING gin (beside) WHERE beside <> '{}';
