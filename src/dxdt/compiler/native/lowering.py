"""A traced graph of tensor operations as works on buffers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dxdt.compiler.native.buffers import TYPES, Buffer, Panels, Put, Unsupported, View, Work, literal
from dxdt.compiler.native.matmul_kinds import Form, Kind, form_of
from dxdt.compiler.native.pointwise import COMPARISONS, INTEGERS, LOGIC, NUMBERS, POINTS, ROUNDED, SAID, power
from dxdt.compiler.native.sizes import Extents

__all__ = ["Lowered"]

aten = torch.ops.aten

_VIEWS = {
    *(aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze, aten.select, aten.slice),
    *(aten.permute, aten.transpose, aten.t, aten.expand, aten.alias, aten.detach, aten.unbind, aten.split),
    *(aten.split_with_sizes, aten.diagonal),
}
_FULL = {aten.full, aten.full_like, aten.scalar_tensor, aten.zeros_like, aten.ones_like, aten.zeros, aten.ones}
# Terms of a batch of products that are written out.
_TERMS = 32


class Lowered:
    """The works of one graph.

    Args:
        names: gives each variable a name of its own.
        sizes: variables for the sizes that are known at run time only, by their expressions.
        panels: fixed matrices as products read them, by matrix and width; shared by the graphs of a program.
        extents: the sizes that follow from one number.
    """

    def __init__(self, names: Callable[[str], str], sizes: dict[str, View], panels: Panels, extents: Extents) -> None:
        self.names, self.sizes, self.panels, self.extents = names, sizes, panels, extents
        self.values: dict[fx.Node, Any] = {}
        self.packed: Panels = {}

    def new(self, value: Any, work: Work, prefix: str = "b") -> View:
        """A buffer for the value of a work, as a view."""
        shape, dtype = (value.shape, value.dtype) if isinstance(value, Tensor) else value
        shape = tuple(shape)
        if dtype not in TYPES or not all(isinstance(n, int) for n in shape):
            raise Unsupported(f"a tensor of {dtype} with sizes {shape}")
        total = 1
        for n in shape:
            total *= n
        if total == 0:
            raise Unsupported("a tensor without elements")
        reads = [*work.operands, *(source for _, source in work.stores)]
        fixed = all(v.buffer.fixed and (v.index is None or v.index.buffer.fixed) for v in reads)
        buffer = Buffer(self.names(prefix), dtype, total, work, fixed)
        return View.of(buffer, shape)

    def run(self, node: fx.Node) -> Any:
        """The value of a node whose arguments have values."""
        target = node.target
        args: Any = fx.map_arg(node.args, lambda n: self.values[n])
        kwargs: Any = fx.map_arg(node.kwargs, lambda n: self.values[n])
        if target is operator.getitem:
            return args[0][args[1]]
        value = self.extents.value(node.meta.get("val"))
        known = self.extents.size(value) if isinstance(value, torch.SymInt) else None
        if known is not None:
            return known
        if target in INTEGERS and isinstance(value, (int, torch.SymInt)):
            return self._integer(target, args)
        if isinstance(value, torch.SymFloat):
            return self._number(target, args)
        if not isinstance(target, torch._ops.OpOverload):
            raise Unsupported(f"the operation {target}")
        packet = target.overloadpacket
        if packet is aten.sym_size:
            return self._size(value)
        return self.operation(node, target, packet, value, list(args), dict(kwargs))

    def operation(
        self, node: fx.Node, target: Any, packet: Any, value: Any, args: list[Any], kw: dict[str, Any]
    ) -> Any:
        """The value of an operation of aten."""
        if packet in _VIEWS:
            return self._view(target, args, kw, value)
        rounded = ROUNDED.get((packet, kw.get("rounding_mode")))
        if rounded is not None and value.dtype.is_floating_point:  # integers may be divided by zero
            return self.point(value, args, rounded)
        if packet in POINTS:
            if {k for k, v in kw.items() if v is not None} - SAID:
                raise Unsupported(f"{target} with {', '.join(kw)}")
            if packet in _ALIASES:
                return self._same(value, args[0])
            return self.point(value, args, POINTS[packet])
        if packet in COMPARISONS:
            known: list[Any] = [n.meta["val"] if isinstance(n, fx.Node) else n for n in node.args]
            kind = torch.result_type(*known)
            return self.point(value, args, COMPARISONS[packet], kind)
        if packet in LOGIC:
            return self.point(value, args, LOGIC[packet], None)
        method = _METHODS.get(packet)
        if method is None:
            raise Unsupported(f"the operation {target}")
        return method(self, target, args, kw, value)

    def point(self, value: Tensor, args: Sequence[Any], build: Callable[..., str], kind: Any = "own") -> View:
        """An operation on each element, its operands cast to ``kind``: a dtype, that of the value, or as they are."""
        dtype = value.dtype if kind == "own" else kind
        if dtype is not None and dtype not in TYPES:
            raise Unsupported(f"the dtype {dtype}")
        t = TYPES[dtype] if dtype is not None else TYPES.get(value.dtype, "")

        def text(*reads: str) -> str:
            rest = iter(zip(reads, operands, strict=True))
            parts = []
            for a in args:
                if not isinstance(a, View):
                    parts.append(literal(a, t))
                    continue
                x, view = next(rest)
                parts.append(x if dtype is None or view.buffer.dtype == dtype else f"(({t}){x})")
            return build(t, *parts)

        operands = tuple(a for a in args if isinstance(a, View))
        return self.new(value, Work("point", tuple(value.shape), operands, text))

    def dense(self, view: View) -> View:
        """The same elements in a buffer of their own."""
        like = torch.empty(view.shape, dtype=view.buffer.dtype, device="meta")
        return self.point(like, [view], lambda t, x: x)

    def _view(self, target: Any, args: list[Any], kw: dict[str, Any], value: Any) -> Any:
        view, rest = args[0], args[1:]
        if None in view.shape:
            if target.overloadpacket is aten.expand and view.shape[0] is None:
                wide = tuple(map(self.extents.size, value.shape))
                strides = [
                    0 if a == 1 and b != 1 else s for a, b, s in zip(view.shape, wide, view.strides, strict=True)
                ]
                return View(view.buffer, wide, tuple(strides), view.offset)
            raise Unsupported(f"{target} of a tensor whose length is not known")
        if view.buffer.scalar and view.numel == 1:
            outs = value if isinstance(value, (list, tuple)) else [value]
            if any(o.numel() != 1 for o in outs):  # an expanded number
                outs = [View(view.buffer, tuple(o.shape), (0,) * o.dim()) for o in outs]
            else:
                outs = [View.of(view.buffer, o.shape) for o in outs]
            return outs if isinstance(value, (list, tuple)) else outs[0]
        try:
            outs = view.seen(lambda x: target(x, *rest, **kw))
        except (RuntimeError, ValueError):
            outs = self.dense(view).seen(lambda x: target(x, *rest, **kw))
        return outs if isinstance(value, (list, tuple)) else outs[0]

    def _same(self, value: Tensor, view: Any) -> View:
        return view if value.dtype == view.buffer.dtype else self.point(value, [view], lambda t, x: x)

    def _full(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        packet = target.overloadpacket
        one = packet in (aten.ones, aten.ones_like)
        number = float(one) if packet in (aten.ones, aten.ones_like, aten.zeros, aten.zeros_like) else None
        if number is None:
            number = args[0] if packet is aten.scalar_tensor else args[1]
        kind = TYPES.get(value.dtype, "")
        if isinstance(number, View):
            return self.point(value, [number.spread(tuple(value.shape))], lambda t, x: x)
        number = int(number) if value.dtype in (torch.int64, torch.int32) else number
        return self.new(value, Work("point", tuple(value.shape), (), lambda: literal(number, kind)))

    def _add(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        a, b, sign = args[0], args[1], "+" if target.overloadpacket is aten.add else "-"
        if target.overloadpacket is aten.rsub:
            a, b = b, a
        alpha = kw.get("alpha", args[2] if len(args) > 2 else 1)
        if alpha == 1:
            return self.point(value, [a, b], lambda t, x, y: f"({x} {sign} {y})")
        return self.point(value, [a, b], lambda t, x, y: f"({x} {sign} {literal(alpha, t)} * {y})")

    def _where(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        t = TYPES.get(value.dtype, "")
        return self.point(value, args, lambda _, c, a, b: f"({c} ? ({t}){a} : ({t}){b})", None)

    def _addc(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        sign = "*" if target.overloadpacket is aten.addcmul else "/"
        scale = kw.get("value", 1)

        def build(t: str, a: str, b: str, c: str) -> str:
            return f"({a} + {b if scale == 1 else f'{literal(scale, t)} * {b}'} {sign} {c})"

        return self.point(value, args[:3], build)

    def _pow(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        if not isinstance(args[1], View):
            return self.point(value, args[:1], lambda t, x: power(t, x, args[1]))
        if not value.dtype.is_floating_point:
            raise Unsupported("a power of integers")
        return self.point(value, args, lambda t, x, y: f"f_pow({x}, {y})")

    def _clamp(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        found: tuple[Any, ...] = (*args, None, None)
        x, low, high = found[:3]
        low, high = kw.get("min", low), kw.get("max", high)
        if low is not None:
            x = self.point(value, [x, low], lambda t, a, b: f"f_clamp_min({a}, {b})")
        return x if high is None else self.point(value, [x, high], lambda t, a, b: f"f_clamp_max({a}, {b})")

    def _reduce(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        name, view = target.overloadpacket.__name__, args[0]
        dims = args[1] if len(args) > 1 else kw.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or range(len(view.shape))
        over = sorted({d % max(1, len(view.shape)) for d in dims}) if view.shape else []
        t = TYPES.get(value.dtype, "")
        steps = {
            "sum": (literal(0, t), lambda a, x: f"{a} += ({t}){x};"),
            "mean": (literal(0, t), lambda a, x: f"{a} += ({t}){x};"),
            "any": ("false", lambda a, x: f"{a} |= (bool){x};"),
            "all": ("true", lambda a, x: f"{a} &= (bool){x};"),
            "amax": (f"-({t})INFINITY", lambda a, x: f"{a} = f_max({a}, ({t}){x});"),
            "amin": (f"({t})INFINITY", lambda a, x: f"{a} = f_min({a}, ({t}){x});"),
        }
        if name in ("amax", "amin") and not value.dtype.is_floating_point:
            if value.dtype != torch.int64:
                raise Unsupported(f"{name} of {value.dtype}")
            steps["amax"] = ("INT64_MIN", lambda a, x: f"{a} = {x} > {a} ? {x} : {a};")
            steps["amin"] = ("INT64_MAX", lambda a, x: f"{a} = {x} < {a} ? {x} : {a};")
        start, step = steps[name]
        count = 1
        for d in over:
            count *= view.shape[d]
        if count == 1 and name in ("sum", "amax", "amin", "mean"):
            out = self._same(value, view)
            return View.of(out.buffer, value.shape) if out.whole else View.of(self.dense(out).buffer, value.shape)
        detail = {"over": over, "start": start, "step": step, "name": "sum" if name == "mean" else name}
        out = self.new(value, Work("sum", view.shape, (view,), detail=detail))
        return self.point(value, [out], lambda t, x: f"({x} / ({t}){count})") if name == "mean" else out

    def _mm(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        packet = target.overloadpacket
        if packet is aten.mm:
            return self.product(value, args[0], args[1])
        bias, a, b = args
        scales = kw.get("beta", 1), kw.get("alpha", 1)
        out = self.product(value, a, b)
        x, y = ("" if s == 1 else f"{s!r} * " for s in scales)
        return self.point(value, [bias, out], lambda t, c, d: f"({x}{c} + {y}{d})")

    def product(self, value: Tensor, a: View, b: View) -> View:
        """A product of two matrices."""
        if value.dtype not in (torch.float32, torch.float64):
            raise Unsupported(f"a product of {value.dtype}")
        if self.extents.open(b.shape[1]):
            raise Unsupported("a product with as many columns as the batch")
        a, b = self._factor(a), self._factor(b)
        form, operands = form_of(a, b, value.dtype.itemsize), [a, b]
        if form.packs:
            n, dense = b.shape[1], b.strides[1] == 1 or b.shape[1] == 1
            columns = -(-n // form.width) * form.width if not dense else form.width if n % form.width else 0
            operands += [self._panels(b, columns * b.shape[0], form.width)] if columns else []
        shape = a.shape[0], b.shape[1]
        return self.new(value, Work("product", shape, tuple(operands), detail={"form": form, "pairs": 1}))

    def sum_of_products(
        self, value: Tensor, rest: Sequence[View], pairs: Sequence[tuple[View, View]], into: bool
    ) -> View:
        """The sum of views and of products; ``into`` changes the only view where it lies, which nothing else reads."""
        factors = [self._factor(x) for pair in pairs for x in pair]
        onto = list(rest)
        if not into and rest:
            total = rest[0] if len(rest) > 1 else self.dense(rest[0])
            for x in rest[1:]:
                total = self.point(value, [total, x], lambda t, a, b: f"({a} + {b})")
            onto = [total]
        form = Form(Kind.GATHERED, form_of(factors[0], factors[1], value.dtype.itemsize).width)
        work = Work("product", tuple(value.shape), (*factors, *onto), detail={"form": form, "pairs": len(pairs)})
        out = self.new(value, work)
        for x in onto:
            x.buffer.fixed &= out.buffer.fixed  # what changes in the loop is formed in it
            out.buffer.name, out.buffer.home = x.buffer.name, x.buffer
        return out

    def _factor(self, x: View) -> View:
        return self.dense(x) if x.buffer.scalar and x.numel > 1 else x

    def _panels(self, b: View, size: int, width: int) -> View:
        """The columns of a matrix as products read them: made once for all of its products."""
        table, key = self.panels if b.buffer.fixed else self.packed, (b, width)
        if key not in table:
            work = Work("pack", b.shape, (b,), detail={"width": width})
            table[key] = self.new(((size,), b.buffer.dtype), work, "p")
        return table[key]

    def _bmm(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        bias = args[0] if target.overloadpacket is aten.baddbmm else None
        a, b = args[-2:]
        terms = a.shape[2]
        if terms > _TERMS or a.buffer.scalar or b.buffer.scalar or kw:
            raise Unsupported(f"a batch of products of {terms} terms")
        operands = [] if bias is None else [bias]
        for j in range(terms):
            operands += a.seen(lambda x, j=j: x[:, :, j : j + 1]) + b.seen(lambda x, j=j: x[:, j : j + 1, :])

        def build(t: str, *x: str) -> str:
            head, pairs = x[: len(x) % 2], x[len(x) % 2 :]
            products = [f"{left} * {right}" for left, right in zip(pairs[::2], pairs[1::2], strict=True)]
            return f"({' + '.join((*head, *products))})"

        return self.point(value, operands, build)

    def _cat(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        parts = args[0]
        axis = (args[1] if len(args) > 1 else kw.get("dim", 0)) % value.dim()
        work = Work("store", tuple(value.shape), ())
        where = 0
        whole = View.of(Buffer("", value.dtype, value.numel()), value.shape)
        pieces = []
        for part in (x for x in parts if 0 not in x.shape):
            part = self._cast(part, value.dtype)
            size = part.shape[axis]
            (target_view,) = whole.seen(lambda x, at=where, n=size: x.narrow(axis, at, n))
            pieces.append((target_view, part))
            where += size
        return self._assembled(value, work, pieces)

    def _cast(self, view: View, dtype: torch.dtype) -> View:
        if view.buffer.dtype == dtype:
            return view
        return self.point(torch.empty(view.shape, dtype=dtype, device="meta"), [view], lambda t, x: x)

    def _assembled(self, value: Tensor, work: Work, pieces: list[tuple[View, View]]) -> View:
        """A buffer that is put together of pieces, whose targets are places in any buffer of its size."""
        if value.numel() == 1:
            return View.of(pieces[-1][1].buffer, value.shape)
        # The sources alone decide whether it is fixed; the targets are then views of the buffer itself.
        work.stores = pieces
        out = self.new(value, work)
        work.stores = [(View(out.buffer, t.shape, t.strides, t.offset), source.spread(t.shape)) for t, source in pieces]
        return out

    def _scatter(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        base, source, *rest = args
        packet = target.overloadpacket
        shape = tuple(value.shape)
        whole = View.of(Buffer("", value.dtype, value.numel()), shape)
        operation = aten.select.int if packet is aten.select_scatter else aten.slice.Tensor
        (place,) = whole.seen(lambda x: operation(x, *rest, **kw))
        work = Work("store", shape, (), detail={"ordered": True})
        return self._assembled(value, work, [(whole, base.spread(shape)), (place, source)])

    def _pad(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        given: tuple[Any, ...] = (*args, 0)
        source, pads, fill = given[:3]
        shape = tuple(value.shape)
        if min(pads) < 0:
            raise Unsupported("a negative padding")
        whole = View.of(Buffer("", value.dtype, value.numel()), shape)

        def inner(x: Tensor) -> Tensor:
            for i in range(len(pads) // 2):
                axis = x.dim() - 1 - i
                x = x.narrow(axis, pads[2 * i], source.shape[axis])
            return x

        (place,) = whole.seen(inner)
        kind = TYPES[value.dtype]
        base = self.new(value, Work("point", shape, (), lambda: literal(fill, kind)))
        work = Work("store", shape, (), detail={"ordered": True})
        return self._assembled(value, work, [(whole, base), (place, source)])

    def _index(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        view, indices = args[0], args[1] if target.overloadpacket is aten.index else (args[2],)
        if len(indices) != 1:
            raise Unsupported("an index of several axes")
        (index,) = indices
        if target.overloadpacket is aten.index_select and args[1] % len(view.shape) != 0:
            raise Unsupported("an index of an inner axis")
        return self._at(view, index, value)

    def _at(self, view: View, index: View, value: Tensor | None) -> View:
        """The entry of a table at one index that is computed."""
        if index is None or index.numel != 1 or view.index is not None or index.buffer.dtype != torch.int64:
            raise Unsupported("an index of more than one entry")
        size = view.shape[0]
        bound = self.sizes.get("rows of " + view.buffer.name) if size is None else size
        if bound is not None:
            like = torch.empty(index.shape, dtype=torch.int64, device="meta")
            index = self.point(like, [index, bound], lambda t, i, n: f"wrap({i}, {n}, bad)")
        elif not index.buffer.scalar:
            index = self.dense(index)
        shape, strides = view.shape[1:], view.strides[1:]
        if value is not None and len(value.shape) == len(view.shape):
            shape, strides = (1, *shape), (0, *strides)
        return View(view.buffer, tuple(shape), tuple(strides), view.offset, index, view.strides[0])

    def _gather(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> View:
        view, axis, index = args[:3]
        if axis != 0 or value.numel() != 1:
            raise Unsupported("a gather of more than one entry")
        found = self._at(view, View.of(index.buffer, ()) if index.buffer.scalar else index, None)
        return View(found.buffer, tuple(value.shape), (0,) * value.dim(), found.offset, found.index, found.step)

    def _put(self, target: Any, args: list[Any], kw: dict[str, Any], value: Tensor) -> Put:
        base, indices, source = args[:3]
        if len(indices) != 1 or (len(args) > 3 and args[3]):
            raise Unsupported("a write at several indices")
        place = self._at(base, indices[0], None)
        return Put(place, self._cast(source.spread(place.shape), base.buffer.dtype))

    def _integer(self, target: Any, args: Sequence[Any]) -> Any:
        if not any(isinstance(a, View) for a in args):
            return target(*args)
        sign = INTEGERS[target]
        like = torch.empty((), dtype=torch.int64, device="meta")
        return self.point(like, args, lambda t, a, b: f"({a} {sign} {b})")

    def _number(self, target: Any, args: Sequence[Any]) -> View:
        """A real number that follows from sizes."""
        build = NUMBERS.get(target)
        if build is None:
            raise Unsupported(f"the number {target} of sizes")
        return self.point(torch.empty((), dtype=torch.float64, device="meta"), args, build)

    def _size(self, value: Any) -> Any:
        found = self.sizes.get(str(value))
        if found is None:
            raise Unsupported("a size that is not given")
        return found


_ALIASES = {aten.clone, aten._to_copy, torch.ops.prims.convert_element_type}
_METHODS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_FULL, Lowered._full),
    **dict.fromkeys((aten.add, aten.sub, aten.rsub), Lowered._add),
    **dict.fromkeys((aten.addcmul, aten.addcdiv), Lowered._addc),
    **dict.fromkeys((aten.sum, aten.mean, aten.any, aten.all, aten.amax, aten.amin), Lowered._reduce),
    **dict.fromkeys((aten.mm, aten.addmm), Lowered._mm),
    **dict.fromkeys((aten.bmm, aten.baddbmm), Lowered._bmm),
    **dict.fromkeys((aten.select_scatter, aten.slice_scatter), Lowered._scatter),
    **dict.fromkeys((aten.index, aten.index_select), Lowered._index),
    aten.where: Lowered._where,
    aten.pow: Lowered._pow,
    aten.clamp: Lowered._clamp,
    aten.cat: Lowered._cat,
    aten.constant_pad_nd: Lowered._pad,
    aten.gather: Lowered._gather,
    aten.index_put: Lowered._put,
}
