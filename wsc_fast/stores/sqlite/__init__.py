"""The offline store in one SQLite file: the store, its thread, its database and its files."""
