"""Real client libraries against a running hub."""
