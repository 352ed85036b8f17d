"""Delivery that can be relied on: retry, acknowledgements, offline messages, failure handlers."""
