"""Kept rooms: their history, and the recovery of clients that come back."""
