"""Schemathesis against the HTTP API of a hub."""
