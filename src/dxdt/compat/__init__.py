"""Drop-ins for the peers: change one import, keep the code."""
