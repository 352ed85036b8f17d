"""Everything at once for a long time, compared with a model."""
