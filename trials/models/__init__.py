"""Models that run: protocols against real servers, before and beside the code that uses them."""
