"""Models made of differential equations."""

from dxdt.models.neural_ode import Augmented, NeuralODE

__all__ = ["Augmented", "NeuralODE"]
