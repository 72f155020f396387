"""Networks: layers, perceptrons and U-Nets that serve as vector fields and denoisers."""

from dxdt.nn.blocks import BlockSpec
from dxdt.nn.embeddings import FourierSpec, Labels, Learned, LearnedSpec, LogFourier, Positional, PositionalSpec
from dxdt.nn.fast_tanh import FastTanh, fast_tanh
from dxdt.nn.layers import ConcatSquash, Fourier, Sinusoidal, scaled, variance_scaling_
from dxdt.nn.magnitude_unet import MagnitudeArchitecture, MagnitudeUNet, edm2
from dxdt.nn.mlp import MLP, ConcatSquashField, MLPField
from dxdt.nn.published import adm, ddpm, ddpmpp, edm_ddpmpp, edm_ncsnpp, ncsnpp, ncsnpp_1024
from dxdt.nn.pyramid import Combine, Progressive
from dxdt.nn.resample import Downsample, Upsample
from dxdt.nn.score_unet import Architecture, BlockResample, ConvResample, ScoreUNet
from dxdt.nn.unet import AttentionBlock, ResidualBlock, UNet

__all__ = [
    "Architecture",
    "AttentionBlock",
    "BlockResample",
    "BlockSpec",
    "Combine",
    "ConcatSquash",
    "ConcatSquashField",
    "ConvResample",
    "Downsample",
    "FastTanh",
    "Fourier",
    "FourierSpec",
    "Labels",
    "Learned",
    "LearnedSpec",
    "LogFourier",
    "MLP",
    "MLPField",
    "MagnitudeArchitecture",
    "MagnitudeUNet",
    "Positional",
    "PositionalSpec",
    "Progressive",
    "ResidualBlock",
    "ScoreUNet",
    "Sinusoidal",
    "UNet",
    "Upsample",
    "adm",
    "ddpm",
    "ddpmpp",
    "edm2",
    "edm_ddpmpp",
    "edm_ncsnpp",
    "fast_tanh",
    "ncsnpp",
    "ncsnpp_1024",
    "scaled",
    "variance_scaling_",
]
