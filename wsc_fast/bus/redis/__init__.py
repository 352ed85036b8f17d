"""The bus over Redis or Valkey: connections, scripts, and what waits while the server is away."""
