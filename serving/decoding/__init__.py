"""The gateway's pool of decode workers."""
