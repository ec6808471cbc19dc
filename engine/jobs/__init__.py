"""Queues, workers, leases, retries and limits: how work is handed out and never forgotten."""
