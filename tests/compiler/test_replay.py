"""Loops taken apart and replayed give what they give as they are."""

import gc
import importlib
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._higher_order_ops.while_loop import while_loop

from dxdt.compiler.backend import traced
from dxdt.compiler.cuda import Recent, Repetition, Replayed, Unsuited, take_apart

CPU = torch.device("cpu")
capture = importlib.import_module("dxdt.compiler.cuda.capture")


@pytest.fixture
def replay():
    """A function compiled, its loop replayed by calling each turn again; the list has the programs."""
    made = []

    def program(graph, inputs):
        parts = take_apart(graph, CPU)
        made.append(Replayed(parts, lambda graph, examples: graph, Repetition(), Recent()))
        return made[-1]

    def compiled(f):
        backend = lambda graph, inputs: traced(graph, inputs, program)  # noqa: E731
        return torch.compile(f, backend=backend, fullgraph=True, dynamic=False)

    with torch.no_grad():
        yield compiled, made


def counted(x, n):
    """Something before the loop, in it, after it, and a result that the loop does not change."""
    scale = x.sin() + 1
    body = lambda i, y: (i + 1, y * scale + torch.tensor([0.5, 1.0]))  # noqa: E731
    i, y = while_loop(lambda i, y: i < n, body, (torch.zeros((), dtype=torch.int64), x.clone()))
    return y.sum(0), i, scale, y


def recorded(x, n, record):
    """Writes at places that follow from what is carried."""

    def body(i, y):
        record.index_put_((i,), y)
        return i + 1, y + 1

    return while_loop(lambda i, y: i < n, body, (torch.zeros((), dtype=torch.int64), x.clone()))


def totalled(x, n, total):
    """A turn reads what turns before it have written."""

    def body(i, y):
        total.add_(y)
        return i + 1, y + total

    return while_loop(lambda i, y: i < n, body, (torch.zeros((), dtype=torch.int64), x.clone()))


def written_before(x, n, total):
    """Also what was written before the loop."""
    total.mul_(2)
    return totalled(x, n, total)


def test_turns(replay):
    compiled, made = replay
    run = compiled(counted)
    for k, turns in enumerate((0, 1, 1, 8, 7, 9, 30, 0)):
        x, n = torch.tensor([0.1, 0.2 + k]), torch.tensor(turns)
        results, wanted = run(x, n), counted(x, n)
        kept = [r.clone() for r in results]
        run(x + 1, n)
        for a, then, b in zip(results, kept, wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-6) and torch.equal(a, then)
    assert len(made) == 1


def test_records(replay):
    """A record has no more rows than there are turns; turns past the end write where the last one wrote."""
    compiled, _ = replay
    run = compiled(recorded)
    for turns in (5, 8, 8, 0, 1):
        x, n = torch.full((2,), float(turns)), torch.tensor(turns)
        records = [torch.full((8, 2), -1.0) for _ in range(2)]
        results = run(x, n, records[0]), recorded(x, n, records[1])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        # A first turn is made also where the loop has ended before it.
        first = 0 if turns else 1
        assert torch.equal(records[0][first:], records[1][first:])


@pytest.mark.parametrize("function", [totalled, written_before])
def test_writes_that_are_read(function, replay):
    compiled, made = replay
    run = compiled(function)
    totals = [torch.ones(2), torch.ones(2)]
    for turns in (3, 3, 0, 2):
        x, n = torch.tensor([0.5, -1.0]), torch.tensor(turns)
        results = run(x, n, totals[0]), function(x, n, totals[1])
        assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))
        assert torch.allclose(*totals)


def no_loop(x, n):
    return x + n


def two_loops(x, n):
    for _ in range(2):
        _, x = while_loop(
            lambda i, y: i < n, lambda i, y: (i + 1, y * 2), (torch.zeros((), dtype=torch.int64), x.clone())
        )
    return x


def watching(x, n):
    """Its condition reads what its turns write."""
    seen = torch.zeros(2)

    def body(i, y):
        seen.add_(1)
        return i + 1, y * 2

    return while_loop(lambda i, y: seen.sum() < n, body, (torch.zeros((), dtype=torch.int64), x.clone()))


@pytest.mark.parametrize(
    ("function", "words"),
    [(no_loop, "no loop"), (two_loops, "more than one loop"), (watching, "condition reads what the loop writes")],
)
def test_what_is_not_suited(function, words, replay):
    compiled, _ = replay
    with pytest.raises(Exception, match=words) as caught:
        compiled(function)(torch.ones(2), torch.tensor(3))
    assert any(isinstance(e, Unsuited) for e in (caught.value, getattr(caught.value, "inner_exception", None)))


def test_inputs_that_repeat_in_memory(replay):
    """Expanded tensors are copied once for all their repetitions."""
    compiled, _ = replay
    run = compiled(lambda x, w, n: counted(x * w, n))
    for k in range(3):
        x, w, n = torch.ones(2) * k, torch.tensor([0.3 + k]).expand(2), torch.tensor(4)
        assert all(torch.allclose(a, b) for a, b in zip(run(x, w, n), counted(x * w, n), strict=True))


class Machine:
    """A CUDA device that only notes what it is told."""

    def __init__(self):
        self.told, self.streams, self.fails = [], [], False
        self.current = Stream(self, "outside")
        self.cuda = SimpleNamespace(
            device=lambda device: nullcontext(),
            stream=lambda stream: nullcontext(),
            current_stream=lambda: self.current,
            set_stream=lambda stream: self.told.append(f"set {stream.name}"),
            Stream=self.stream,
            Event=lambda: Event(self),
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: self.told.append("replay")),
            graph=self.capturing,
            graph_pool_handle=lambda: f"pool {len(self.streams)}",
        )
        self._C = SimpleNamespace(_cuda_clearCublasWorkspaces=lambda: self.told.append("clear"))

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *size, pin_memory=False, **options):
        assert pin_memory
        return torch.empty(*size, **options)

    def stream(self):
        self.streams.append(Stream(self, f"stream {len(self.streams) + 1}"))
        return self.streams[-1]

    @contextmanager
    def capturing(self, graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local" and not gc.isenabled()
        self.told.append(f"begin {pool} on {stream.name}")
        yield
        if self.fails:
            raise RuntimeError("a capture that failed")
        self.told.append("end")


class Stream:
    def __init__(self, machine, name):
        self.machine, self.name = machine, name

    def wait_stream(self, other):
        self.machine.told.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.machine.told.append(f"{self.name} waits")


class Event:
    def __init__(self, machine):
        self.machine = machine

    def record(self, stream=None):
        self.machine.told.append("record")

    def synchronize(self):
        self.machine.told.append("synchronize")


def test_what_a_device_is_told(monkeypatch):
    """Order of calls of a capture, of one that fails, and of looks at a flag."""
    machine = Machine()
    monkeypatch.setattr(capture, "torch", machine)
    graphs = capture.Graphs(CPU)
    machine.told.clear()
    work = lambda: machine.told.append("work")  # noqa: E731
    with graphs.alone():
        graphs(work)()
    captured = ["clear", "begin pool 1 on stream 1", "work", "end", "clear"]
    waits = "stream 1 waits for outside", "outside waits for stream 1"
    assert machine.told == ["outside waits", waits[0], *captured, waits[1], "replay", "record"] and gc.isenabled()

    machine.told.clear()

    def broken():
        machine.fails = True

    def stream():
        machine.fails = False
        return machine.stream()

    monkeypatch.setattr(machine.cuda, "Stream", stream)
    with pytest.raises(RuntimeError, match="failed"):
        graphs(broken)
    assert "set outside" in machine.told and gc.isenabled()
    machine.told.clear()
    graphs(work)
    assert "begin pool 2 on stream 2" in machine.told, "a pool that is in doubt is not used again"

    flag = torch.tensor([1, 3])
    signal = graphs.signal(flag)
    signal.send()
    flag.copy_(torch.tensor([0, 5]))
    signal.send()
    assert signal.wait() == (1, 3) and signal.wait() == (0, 5)
    signal.send()
    signal.clear()
    signal.send()
    signal.send()
    assert signal.wait() == (0, 5)
