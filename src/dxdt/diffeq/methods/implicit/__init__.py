"""Methods for stiff equations, whose stages are given by equations."""
