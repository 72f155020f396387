"""Small published classifiers that a folder of data may hold; their features compare sets of images.

The folder is the one that DXDT_DATA names; its `weights` hold the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.lab.evaluation.weights import load_into, read_weights


@final
class MnistNet(nn.Module):
    """Two convolutions and two linear layers; the 500 features are those before the last layer.

    Shapes: x (B, 1, 28, 28) in [0, 1]; features (B, 500); logits (B, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 500"]:
        """Return the features of images in [0, 1]."""
        h = (x - 0.1307) / 0.3081
        h = F.max_pool2d(F.relu(self.conv1(h)), 2)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        return F.relu(self.fc1(h.flatten(1)))

    def logits(self, features: Float[Tensor, "batch 500"]) -> Float[Tensor, "batch 10"]:
        """Return the logits of the ten digits."""
        return self.fc2(features)


@final
class _BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv x))))); the shortcut halves by stride and pads channels."""

    def __init__(self, n: int, m: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n, m, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(m)
        self.conv2 = nn.Conv2d(m, m, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(m)
        self.stride, self.more = stride, m - n

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        side = self.more // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.more - side))
        return F.relu(h + shortcut)


@final
class ResNet20(nn.Module):
    """The residual network of CIFAR-10 with 20 layers; the 64 features are the averages before the last.

    Shapes: x (B, 3, 32, 32) in [0, 1]; features (B, 64); logits (B, 10).

    Source: He et al., "Deep residual learning for image recognition" (2016), section 4.2.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)

        def layer(n: int, m: int) -> nn.Sequential:
            return nn.Sequential(_BasicBlock(n, m, 1 if n == m else 2), _BasicBlock(m, m, 1), _BasicBlock(m, m, 1))

        self.layer1, self.layer2, self.layer3 = layer(16, 16), layer(16, 32), layer(32, 64)
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, x: Float[Tensor, "batch 3 32 32"]) -> Float[Tensor, "batch 64"]:
        """Return the features of images in [0, 1]."""
        h = F.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        return self.layer3(self.layer2(self.layer1(h))).mean((2, 3))

    def logits(self, features: Float[Tensor, "batch 64"]) -> Float[Tensor, "batch 10"]:
        """Return the logits of the ten classes."""
        return self.linear(features)


def mnist_cnn(folder: Path) -> MnistNet:
    """Return a small published classifier of MNIST digits.

    Raises:
        FileNotFoundError: weights/mnist_cnn.pt is missing.
        ValueError: it is damaged.

    Source: the tutorials of BoTorch (github.com/pytorch/botorch).
    """
    path = folder / "weights" / "mnist_cnn.pt"
    net = MnistNet()
    load_into(net, read_weights(path, "a classifier of MNIST"), path)
    return net


def resnet20(folder: Path) -> ResNet20:
    """Return a published classifier of CIFAR-10 images.

    Raises:
        FileNotFoundError: weights/resnet20_cifar10.th is missing.
        ValueError: it is damaged.

    Source: Y. Idelbayev, github.com/akamaster/pytorch_resnet_cifar10.
    """
    path = folder / "weights" / "resnet20_cifar10.th"
    found = read_weights(path, "a classifier of CIFAR-10").get("state_dict")
    if not isinstance(found, dict):
        raise ValueError(f"{path} has no entry state_dict; restore the original file.")
    net = ResNet20()
    load_into(net, {name.removeprefix("module."): value for name, value in found.items()}, path)
    return net
