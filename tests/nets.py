"""A small field whose weights follow from a seed."""

import torch

F64 = torch.float64


class Swung(torch.nn.Module):
    """Two layers times ``rate`` against a swinging decay, on states ``(..., 2)``, by clocks ``()`` or ``(B,)``."""

    def __init__(self, seed=2, width=4, dtype=F64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner, self.outer = torch.nn.Linear(2, width), torch.nn.Linear(width, 2)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=F64).to(dtype) / 2

    def forward(self, t, y, rate):
        time = t.reshape(t.shape + (1,) * (y.ndim - t.ndim))
        return self.outer(torch.tanh(self.inner(y))) * rate - y * torch.sin(time)
