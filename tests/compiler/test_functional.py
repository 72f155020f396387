"""Loops that write into given tensors are functional inside: kernels of torch that write in place are undone."""

import pytest
import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.fx.experimental.proxy_tensor import make_fx

from dxdt.compiler import backend as compiling
from dxdt.compiler.functional import functional, writes

F64 = torch.float64
torch.manual_seed(0)
GRU, LSTM, RNN = (kind(3, 8, dtype=F64).requires_grad_(False) for kind in (nn.GRUCell, nn.LSTMCell, nn.RNNCell))
INTO, BACK = (nn.Linear(*sizes, dtype=F64).requires_grad_(False) for sizes in ((3, 8), (8, 3)))


def reduced(x):
    return x.sum(-1, keepdim=True) - x


def twice(y):
    """What a cell gives is read by two that follow, and what it is given after it."""
    x = INTO(y)
    z = GRU(y, x)
    return BACK(reduced(z) * z) + BACK(x)


CELLS = {
    "gru": lambda y: BACK(reduced(GRU(y, INTO(y)))),
    "lstm": lambda y: BACK(reduced(torch.cat(LSTM(y, (INTO(y), INTO(-y))), 0)).unflatten(0, (2, -1)).sum(0)),
    "rnn": lambda y: BACK(reduced(RNN(y, INTO(y)))),
    "sequence": lambda y: BACK(reduced(GRU(-y, GRU(y, INTO(y))))),
    "twice": twice,
    "own": lambda y: torch.stack([y[:, 0], y[:, 1], y[:, 2]], 1).mul_(y.sum(-1, keepdim=True)).sub_(1).tanh_(),
}


def recorded(field, y, turns=3):
    """Values of a loop that writes each into a given tensor, and that tensor."""
    record = torch.zeros(turns, *y.shape, dtype=y.dtype)

    def run(y, record):
        def body(i, y):
            y = y + 0.3 * field(y)
            record.index_put_((i,), y)
            return i + 1, y

        return while_loop(lambda i, y: i < turns, body, (torch.zeros((), dtype=torch.int64), y.clone()))[1]

    torch._dynamo.reset()
    with torch.no_grad():
        end = torch.compile(run, backend=compiling.backend, fullgraph=True, dynamic=False)(y, record)
        wanted = [y]
        for _ in range(turns):
            wanted.append(wanted[-1] + 0.3 * field(wanted[-1]))
    return end, record, torch.stack(wanted[1:])


@pytest.mark.parametrize("name", CELLS)
def test_cells_in_loops_that_record(name, monkeypatch):
    """Native code takes them, because nothing in the loop's graph writes in place."""
    refused = []
    monkeypatch.setattr(compiling, "inductor", lambda graph, inputs: refused.append(graph) or graph.forward)
    end, record, wanted = recorded(CELLS[name], torch.randn(5, 3, dtype=F64))
    assert not refused
    assert torch.allclose(record, wanted, rtol=1e-13) and torch.allclose(end, wanted[-1], rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_cells_in_loops_that_record_by_torchs_compiler(name, monkeypatch):
    def none(graph):
        raise compiling.Unsupported("as if it had an operation without native code")

    monkeypatch.setattr(compiling, "translate", none)
    end, record, wanted = recorded(CELLS[name], torch.randn(5, 3, dtype=F64))
    assert torch.allclose(record, wanted, rtol=1e-13) and torch.allclose(end, wanted[-1], rtol=1e-13)


def graph_of(f, *given):
    """A graph that holds the graph of f, traced as it is."""
    graph = torch.fx.Graph()
    graph.output((graph.get_attr("body"),))
    return torch.fx.GraphModule({"body": make_fx(f, tracing_mode="fake")(*given)}, graph)


def test_writes_into_views_and_copies_at_the_end():
    """A write into a view is seen by what reads the whole; what was given is written to at the end only."""

    def f(x, record):
        z = x * 2
        z[1:].add_(1)
        z[:2].mul_(x[:2])
        total = z.sum()
        z.zero_()
        record.copy_(z + total)
        return total, x.sin_()

    graph = graph_of(f, torch.arange(3.0), torch.zeros(3))
    assert len(writes(graph.body)) == 5
    assert not writes(functional(graph).body)
    given, wanted = (torch.arange(3.0), torch.zeros(3)), (torch.arange(3.0), torch.zeros(3))
    values = graph.body(*given), f(*wanted)
    for a, b in zip((*values[0], *given), (*values[1], *wanted), strict=True):
        assert torch.equal(a, b) and b.any()
