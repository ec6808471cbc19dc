-- Deliveries: looked up by age (the oldest are forgotten first), and marked as processed without touching an index.
DROP INDEX webhook_events_unprocessed;
CREATE INDEX webhook_events_age ON webhook_events (created_at);
ALTER TABLE webhook_events SET (fillfactor = 80);
