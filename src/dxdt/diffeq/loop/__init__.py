"""The loop: its state, one attempted step, events, and what is saved."""
