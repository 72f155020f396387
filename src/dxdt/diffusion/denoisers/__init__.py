"""Networks that answer with the expected clean data."""
