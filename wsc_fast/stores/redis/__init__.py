"""The offline store in Redis or Valkey."""
