-- What a provider may still be at work on, or may have taken without our knowing, after its attempt was over: it is
-- looked after until nothing is in doubt. `duplicates`: calls of this attempt that were, or may have been, paid beside
-- the one that counts; null while there was no reason to think so.
ALTER TABLE predictions
    ADD COLUMN in_doubt boolean NOT NULL DEFAULT false,
    ADD COLUMN duplicates integer;
CREATE INDEX predictions_in_doubt ON predictions (provider, id) WHERE in_doubt OR provider_completed_at IS NULL;

-- A deleted task's duplicates stay on the bill.
ALTER TABLE usage_of_deleted ADD COLUMN duplicates bigint;
