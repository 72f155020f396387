"""Networks: layers, perceptrons and U-Nets that serve as vector fields and denoisers."""

from dxdt.nn.fast_tanh import FastTanh, fast_tanh
from dxdt.nn.layers import ConcatSquash, Fourier, Sinusoidal, scaled, variance_scaling_
from dxdt.nn.mlp import MLP, ConcatSquashField, MLPField
from dxdt.nn.unet import AttentionBlock, ResidualBlock, UNet

__all__ = [
    "MLP",
    "AttentionBlock",
    "ConcatSquash",
    "ConcatSquashField",
    "FastTanh",
    "Fourier",
    "MLPField",
    "ResidualBlock",
    "Sinusoidal",
    "UNet",
    "fast_tanh",
    "scaled",
    "variance_scaling_",
]
