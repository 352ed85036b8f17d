"""Servers and stores that are killed, full, late and shared, and users who count."""
