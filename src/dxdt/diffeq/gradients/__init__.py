"""How a solve is differentiated: eager rules and what they keep."""
