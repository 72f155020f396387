"""Native code computes what torch computes: elements, reductions, products, views, writes and indices."""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed
from torch._higher_order_ops.while_loop import while_loop
from torch._inductor.decomposition import select_decomp_table

from dxdt.compiler.native import load, translate
from dxdt.compiler.native.build import _room

F32, F64 = torch.float32, torch.float64


def native(graph, inputs, build=lambda graph, inputs: load(translate(graph))):
    """The backend without torch's compiler behind it."""
    options = {"keep_inference_input_mutations": True, "decompositions": select_decomp_table()}
    return aot_autograd(fw_compiler=build, inference_compiler=build, **options)(graph, inputs)


def looped(f, *inputs, turns=2, **options):
    """``turns`` times f of a running value and the inputs, in a loop."""

    def run(start, *inputs):
        def body(i, value):
            return i + 1, f(value, *inputs)

        i = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, value: i < turns, body, (i, start.clone()))[1]

    with torch.no_grad():
        start = torch.zeros_like(f(f_start(f, inputs), *inputs))
        wanted = start
        for _ in range(turns):
            wanted = f(wanted, *inputs)
        torch._dynamo.reset()
        backend = partial(native, **options)
        given = torch.compile(run, backend=backend, fullgraph=True, dynamic=False)(start, *inputs)
    return given, wanted


def text_of(f, *inputs):
    """The C++ of a loop over f."""
    texts = []

    def build(graph, inputs):
        source = translate(graph)
        texts.append(source.text)
        return load(source)

    looped(f, *inputs, build=build)
    return texts[0][texts[0].index("int run(") :]


def f_start(f, inputs):
    return torch.zeros((), dtype=inputs[0].dtype)


def close(given, wanted, ulps=64):
    assert given.shape == wanted.shape and given.dtype == wanted.dtype
    tolerance = ulps * torch.finfo(wanted.dtype).eps
    assert torch.allclose(given, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def elements(value, x, y):
    p, q = x.abs() + 0.1, torch.tanh(x) * 0.9
    nan = torch.where(x > 0.5, torch.full_like(x, float("nan")), x)
    odd = torch.where(y < -1, float("inf"), y)
    flags = (x > 0) & ~(y < 0.2) | torch.isnan(nan) ^ torch.isinf(odd)
    parts = [
        *(p.sqrt(), x.exp(), x.exp2(), x.expm1(), p.log(), p.log1p(), p.log2(), p.log10(), x.sin(), x.cos(), q.tan()),
        *(q.asin(), q.acos(), x.atan(), x.sinh(), x.cosh(), x.tanh(), x.asinh(), (1 + p).acosh(), q.atanh(), x.erf()),
        *(x.floor(), x.ceil(), x.trunc(), x.round(), torch.atan2(x, y), torch.hypot(x, y), x.neg(), x.abs(), p.rsqrt()),
        nan.sign(),
        *(p.reciprocal(), x.square(), x**3, p**0.5, p**-1.7, p**y, 2.0**x, x.sigmoid(), x.relu(), x.clamp(-0.3, 0.7)),
        *(torch.maximum(nan, y), torch.minimum(x, nan), nan.clamp(max=0.1), nan.clamp(min=0.1), nan.relu(), odd),
        *(x - 2 * y, torch.rsub(x, y, alpha=3), x / y, 1.5 / p, torch.addcmul(x, y, p, value=0.5)),
        *(torch.addcdiv(x, y, p), torch.where(flags, x, y), flags.to(x.dtype), (x == y).to(x.dtype), x.long().to(x)),
        *(
            torch.nn.functional.softplus(x),
            torch.nn.functional.silu(x),
            torch.nn.functional.gelu(x),
            torch.lerp(x, y, p),
        ),
        *(torch.div(x, 0.3, rounding_mode="floor"), torch.div(x, y, rounding_mode="trunc"), x // -0.25, x % 0.7, x % y),
        *(
            torch.fmod(x, 0.4),
            torch.fmod(x, y),
            -x % -0.3,
            (3 * y).floor() // 3,
            torch.div(x, 0 * y, rounding_mode="floor"),
        ),
        *(torch.logical_or(x > 0, y > 0).to(x), torch.logical_not(x > 0).to(x), torch.nn.functional.elu(x)),
    ]
    return torch.stack(parts) + 0.5 * value


@pytest.mark.parametrize(("size", "dtype"), [(1, F64), (37, F32)])
def test_elements(size, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(size, generator=generator, dtype=F64).to(dtype) for _ in range(2))
    close(*looped(elements, x, y))


def tables(value, x, w, b):
    """Products of many sizes, sums over every axis, views, pieces and paddings."""
    a = torch.tanh(x @ w.t() + b)
    parts = [a @ w, a.t() @ x, (x @ w.t())[:1] @ w, a[:, :1].t() @ a[:, 1:2], x[:3] @ w[:5].t(), a.contiguous() @ w]
    parts += [a.sum(0), a.sum(1), a.sum(), a.mean(-1, keepdim=True), a.amax(0), a.amin(-1), a.softmax(-1)]
    parts += [a.reshape(-1, 2, a.shape[-1] // 2).transpose(1, 2).sum(-1), a.unbind(1)[3], a[:, 2:7:2], x.diagonal()]
    parts += [torch.cat([x[:, :2], a, x[:, 1:]], -1), torch.stack([a, a * b], 1), a.t()]
    parts += [torch.nn.functional.pad(x, (1, 2, 0, 1)), a.slice_scatter(a[:2] * 2, 0, 1, 3)]
    parts += [
        a.select_scatter(b, 0, 2),
        (a > 0).any(-1).to(a),
        (a > -2).all().to(a),
        torch.linalg.vector_norm(a, dim=-1),
    ]
    parts += [torch.linalg.vector_norm(a, float("inf"), dim=0), b.expand(3, -1), w.t().reshape(-1), b @ w]
    return torch.cat([p.reshape(-1) for p in parts]) + 0.5 * value


@pytest.mark.parametrize(("rows", "inner", "outer", "dtype"), [(4, 5, 8, F64), (21, 33, 70, F32)])
def test_tables(rows, inner, outer, dtype):
    generator = torch.Generator().manual_seed(1)
    x, w, b = (
        torch.randn(*s, generator=generator, dtype=F64).to(dtype) for s in ((rows, inner), (outer, inner), (outer,))
    )
    close(*looped(tables, x, w, b), ulps=2000)


@pytest.mark.parametrize(
    ("rows", "inner", "outer"),
    [(1, 300, 129), (2, 257, 130), (9, 300, 40), (64, 17, 1), (3, 200, 170), (34, 40, 1030), (134, 290, 20)],
)
def test_products_of_other_sizes(rows, inner, outer):
    """Both factors as they lie, and each transposed."""
    generator = torch.Generator().manual_seed(2)
    x, w = torch.randn(rows, inner, generator=generator), torch.randn(outer, inner, generator=generator)
    f = lambda value, x, w, v: (x @ w.t()) + (x.t().contiguous().t() @ v).tanh() + 0.5 * value  # noqa: E731
    close(*looped(f, x, w, w.t().clone(memory_format=torch.contiguous_format)), ulps=4000)


def totals(x, g, h, total, other, more):
    """What a backward pass does in a step: totals, each with products of what several stages made."""
    kept = (x.t() @ g).t() + h.t() @ x
    return (
        total + ((h.t() @ x + (x.t() @ h).t()) + g.t() @ x),
        other + kept + g.t() @ x + kept,
        more + g @ (kept @ kept.t()),
    )


@pytest.mark.parametrize(("rows", "width", "height"), [(1, 37, 5), (21, 40, 40), (3, 2, 150), (65, 3, 140)])
def test_sums_of_products_change_a_total_where_it_lies(rows, width, height):
    generator = torch.Generator().manual_seed(4)
    x, g, h = (0.2 * torch.randn(rows, n, generator=generator) for n in (width, height, height))
    starts = [torch.randn(*s, generator=generator) for s in ((height, width), (height, width), (rows, height))]
    texts = []

    def build(graph, inputs):
        source = translate(graph)
        texts.append(source.text[source.text.index("int run(") :])
        return load(source)

    def run(*starts):
        def body(i, *old):
            return i + 1, *totals(torch.cos(i) * x, g, torch.sin(i) * h, *old)

        i = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, *old: i < 3, body, (i, *(s.clone() for s in starts)))[1:]

    wanted = starts
    for i in range(3):
        wanted = totals(torch.cos(torch.tensor(i)) * x, g, torch.sin(torch.tensor(i)) * h, *wanted)
    with torch.no_grad():
        given = torch.compile(run, backend=partial(native, build=build), fullgraph=True, dynamic=False)(*starts)
    for a, b in zip(given, wanted, strict=True):
        close(a, b, ulps=4000)
    (total,) = (n for n in re.findall(r"sums<.*, 3, GATHERED>\(f_(\w+), 0, \1, true\)", texts[0]))
    assert total.startswith("c") and "sums<" in texts[0].partition(total)[2]


def test_writes_and_indices():
    """A table that the loop reads at a computed place, and a buffer that it writes into."""

    def run(table, buffer, start):
        def body(i, y):
            buffer.index_put_((i,), y)
            return i + 1, torch.sin(y) + table.index_select(0, i.reshape(1))[0]

        return while_loop(lambda i, y: i < 5, body, (start.clone(), torch.ones(3)))

    table, buffer = torch.randn(6, 3, generator=torch.Generator().manual_seed(3)), torch.zeros(8, 3)
    y, written = torch.ones(3), torch.zeros(8, 3)
    for i in range(1, 5):
        written[i] = y
        y = torch.sin(y) + table[i]
    with torch.no_grad():
        compiled = torch.compile(run, backend=native, fullgraph=True, dynamic=False)
        i, given = compiled(table, buffer, torch.ones((), dtype=torch.int64))
        assert int(i) == 5
        close(given, y)
        close(buffer, written)
        with pytest.raises(IndexError, match="outside its table"):
            compiled(table, buffer, torch.tensor(-20))


def test_two_loops():
    """The second goes on where the first ended, over values formed before, between and after, in one buffer."""

    def run(start, w, out):
        once = w.sin()

        def body(i, y):
            out.index_put_((i,), y)
            return i + 1, y @ once + w.sum()

        def other(i, y):
            out.index_put_((i,), y * once.exp().sum())
            return i + 1, (y @ once) * scale

        count = torch.zeros((), dtype=torch.int64)
        i, y = while_loop(lambda i, y: i < 2, body, (count, start.clone()))
        scale = y.tanh() + once.cos().sum()
        i, y = while_loop(lambda i, y: i < 5, other, (i.clone(), y.clone()))
        return y + scale, i

    start, w = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3), torch.linspace(0.1, 0.9, 9, dtype=F64).reshape(3, 3)
    outs = [torch.zeros(5, 2, 3, dtype=F64) for _ in range(2)]
    with torch.no_grad():
        torch._dynamo.reset()
        y, count = torch.compile(run, backend=native, fullgraph=True, dynamic=False)(start, w, outs[0])
        wanted, _ = torch.compile(run, backend="eager", fullgraph=True, dynamic=False)(start, w, outs[1])
    assert count == 5
    close(y, wanted, ulps=2000)
    close(outs[0], outs[1], ulps=2000)


def test_what_has_no_native_code_is_told():
    for x, f, told in (
        (torch.ones(4, dtype=torch.complex64), lambda value, x: x * 2 + value, "complex64"),
        (torch.ones(3), lambda value, x: x.cumsum(0) + value, "cumsum"),
        (torch.ones(0, 3), lambda value, x: x * 2 + value, "without elements"),
    ):
        with pytest.raises(BackendCompilerFailed, match=f"Unsupported: .*{told}"):
            looped(f, x)


@pytest.mark.parametrize("sizes", [(3, 4, 5, 1), (3, 1, 5, 2), (2, 4, 1, 3)])
def test_batches_of_products(sizes):
    batch, n, k, m = sizes
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(batch, *s, generator=generator, dtype=F64) for s in ((n, k), (m, k)))
    c = torch.randn(batch, n, m, generator=generator, dtype=F64)

    def f(value, a, b, c):
        b = (2 * b).mT
        return torch.baddbmm(c, a, b) + (a @ b).tanh() + 0.5 * value

    close(*looped(f, a, b, c))


def test_extremes_of_integers():
    x = torch.tensor([[3.0, -7.0, 5.0], [1.0, 2.0, -1.0]], dtype=F64)

    def f(value, x):
        whole = x.long()
        return whole.amax(1).to(x) - whole.amin(1).to(x) + 0.5 * value

    close(*looped(f, x))


def test_a_matrix_is_packed_once():
    x, w = torch.randn(8, 40), torch.randn(40, 40)
    text = text_of(lambda value, x, w: torch.tanh(torch.tanh(x @ w.t()) @ w.t()) @ w.t() + 0.5 * value, x, w)
    assert text.count("product<") == 3 and text.count("pack<") == 1
    assert text.index("pack<") < text.index("for (;;)")


def test_memory_to_work_in_is_kept_by_each_thread():
    given = looped(lambda value, x, w: torch.tanh(x @ w) + value, torch.ones(8, 40), torch.ones(40, 40))[0]
    places = [_room.of(64).data_ptr() for _ in range(2)]
    assert places[0] == places[1]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: _room.of(64).data_ptr()).result() != places[0]
    assert _room.of(1 << 27).data_ptr() != _room.of(64).data_ptr() == places[0]
    assert torch.isfinite(given).all()


def test_empty_parts_are_joined():
    x = torch.randn(5, 3)
    close(*looped(lambda value, x: torch.cat([x[:, :0], x[:, 1:], x[:, :1]], 1) * 0.5 + value, x))
