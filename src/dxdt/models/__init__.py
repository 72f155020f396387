"""Models made of differential equations."""

from dxdt.models.neural_ode import Augmented, NeuralODE
from dxdt.models.neural_sde import NeuralSDE
from dxdt.models.scores import energy_distance, energy_score

__all__ = ["Augmented", "NeuralODE", "NeuralSDE", "energy_distance", "energy_score"]
