"""Clients of `clients/` on hubs and networks that fail: see run.py."""
