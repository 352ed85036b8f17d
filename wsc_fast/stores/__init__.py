"""Offline stores: what one is, and those that come with the package.

`base.py` has the protocol. Each store stands in a file or a folder of its own. This room knows
nothing of the hub or of deliveries: a store gets ids and bytes, and gives them back.
"""
