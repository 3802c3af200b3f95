"""The wire contract: limits, statuses, error details, responses."""
