"""The outside, implemented: PostgreSQL, the journal, snapshots, recovery, artifacts. Imports `engine` only."""
