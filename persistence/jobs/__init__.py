"""The job queue in PostgreSQL: the statements for the journal's transaction (`rows`) and the JobStore (`store`)."""
