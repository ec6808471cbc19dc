"""What the house tells of itself: Prometheus metrics and structured logs. Never prompts, outputs or tokens."""
