"""Who may call: TLS, tokens, JWT, quotas."""
