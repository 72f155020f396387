"""Programs of compiled solves: what shapes them, their inputs, and the engine that keeps them."""
