"""How long a step is: controllers that judge a step and propose the next."""
