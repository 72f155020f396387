"""Rules for one step."""
