"""Attackers and honest clients around a hub: what attacks cost in memory and latency."""
