"""Buses, through which several hubs are one: the interface of a bus, and those that there are."""
