"""The task: its events, its state, and the TaskServer that holds its truth in memory."""
