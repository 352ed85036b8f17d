"""Connections that something other than the hub's own server has made."""
