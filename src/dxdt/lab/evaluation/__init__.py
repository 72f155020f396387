"""How good samples are, and the networks that judge them."""
