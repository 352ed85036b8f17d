"""The Autobahn cases, by kosoku, against a hub that echoes."""
