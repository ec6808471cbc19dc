-- How many jobs of each queue a server runs at once, so that the others can tell how long a line takes.
ALTER TABLE servers ADD COLUMN slots jsonb NOT NULL DEFAULT '{}';
