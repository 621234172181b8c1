"""Keys: how a secret is made and checked, who a request is by its key, and how keys are issued and revoked."""
