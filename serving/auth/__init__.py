"""Authentication of callers and their quotas: TLS, static bearer tokens, JWTs."""
