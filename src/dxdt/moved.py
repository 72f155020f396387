"""Where modules were in version 0.1, so that old imports and saved models still find them.

`dxdt.solve` was a room and is the function alone now; its modules are in `dxdt.diffeq`, and those of `dxdt.diffusion`
lie in rooms of their own. An old name is imported once, with a deprecation sentence, and is the new module.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "install"]

_ROOMS: dict[str, dict[str, str]] = {
    "solve": {
        "adjoint_program": "diffeq.compiled.adjoint",
        "adjoint_rows": "diffeq.gradients.adjoint_rows",
        "adjoint_sweep": "diffeq.gradients.adjoint_sweep",
        "ahead": "diffeq.programs.predrawn",
        "backsolve": "diffeq.gradients.backsolve",
        "batch": "diffeq.programs.batch",
        "captured": "diffeq.gradients.closure_tensors",
        "checkpointed": "diffeq.gradients.checkpointed",
        "compiled": "diffeq.compiled.forward",
        "compiled_backsolve": "diffeq.compiled.backsolve",
        "compiled_event": "diffeq.compiled.events",
        "compiled_gradient": "diffeq.compiled.checkpointed",
        "compiled_pieces": "diffeq.compiled.pieces",
        "compiled_reversible": "diffeq.compiled.reversible",
        "compiled_solve": "diffeq.compiled.solve",
        "compiling": "diffeq.compiled.context",
        "controller": "diffeq.control.controller",
        "conversion": "diffeq.problem.conversion",
        "cotangents": "diffeq.gradients.cotangents",
        "dense": "diffeq.loop.dense",
        "density": "diffeq.problem.density",
        "engine": "diffeq.programs.engine",
        "entries": "compiler.direct_dispatch",
        "equation": "diffeq.problem.equation",
        "event": "diffeq.loop.event",
        "explicit": "diffeq.methods.explicit",
        "exponential": "diffeq.methods.exponential.integrator",
        "exponential_course": "diffeq.methods.exponential.tables",
        "exponential_guide": "diffeq.methods.exponential.prepared",
        "exponential_lines": "diffeq.methods.exponential.coefficients",
        "exponential_noise": "diffeq.methods.exponential.noise",
        "exponential_options": "diffeq.methods.exponential.options",
        "exponential_recipes": "diffeq.methods.exponential.schemes",
        "exponential_weights": "diffeq.methods.exponential.weights",
        "fallback": "compiler.explain",
        "form": "diffeq.programs.signature",
        "functions": "compiler.compile",
        "given": "diffeq.programs.runtime_inputs",
        "gradient": "diffeq.gradients.gradient",
        "high_order": "diffeq.methods.high_order",
        "history": "diffeq.methods.lagrange",
        "identity": "diffeq.programs.field_key",
        "lifted": "diffeq.programs.scalars",
        "loop": "diffeq.loop.advance",
        "low_storage": "diffeq.methods.low_storage",
        "mapped": "diffeq.vmap",
        "march": "diffeq.loop.fixed_grid",
        "memories": "diffeq.compiled.state_cotangents",
        "multistep": "diffeq.methods.adams",
        "near_reversible": "diffeq.methods.near_reversible",
        "noise": "diffeq.problem.noise",
        "noisy": "diffeq.methods.noise_facts",
        "phases": "diffeq.programs.starters",
        "plan": "diffeq.loop.plan",
        "progress": "diffeq.progress",
        "reads": "compiler.dependencies",
        "record": "diffeq.loop.saving",
        "records": "diffeq.programs.step_buffer",
        "reverse_chunk": "diffeq.programs.pullback",
        "reversible": "diffeq.methods.reversible",
        "reversible_gradient": "diffeq.gradients.reversible",
        "revisit": "diffeq.control.revisit",
        "save": "diffeq.loop.save",
        "schedule": "diffeq.gradients.checkpoint_slots",
        "semilinear": "diffeq.problem.affine",
        "sizes": "diffeq.programs.open_batch",
        "solution": "diffeq.solution",
        "solve": "diffeq.entry",
        "solver": "diffeq.methods.solver",
        "span": "diffeq.problem.span",
        "start": "diffeq.loop.start",
        "starts": "diffeq.gradients.clock_tape",
        "static": "diffeq.programs.controller_split",
        "step": "diffeq.loop.step",
        "stochastic": "diffeq.methods.stochastic",
        "stochastic_area": "diffeq.methods.stochastic_area",
        "suitable": "diffeq.checks",
        "symplectic": "diffeq.methods.symplectic",
        "tableau": "diffeq.methods.tableau",
        "time_cotangents": "diffeq.compiled.time_cotangents",
        "transfer": "diffeq.programs.transfer",
        "untouched": "diffeq.loop.probe",
        "walk_program": "diffeq.compiled.reverse_walk",
        "wrappers": "diffeq.methods.step_doubling",
    },
    "diffusion": {
        "ancestral": "diffusion.sampling.ancestral",
        "bridge": "diffusion.processes.bridge",
        "churn": "diffusion.sampling.churn",
        "clock": "diffusion.denoisers.noise_label",
        "corrector": "diffusion.sampling.corrector",
        "covariance": "diffusion.denoisers.covariance",
        "denoiser": "diffusion.denoisers.denoiser",
        "encode": "diffusion.evaluation.encode",
        "exploding": "diffusion.processes.exploding",
        "flow": "diffusion.processes.flow",
        "grid": "diffusion.sampling.grid",
        "likelihood": "diffusion.evaluation.likelihood",
        "mean_reverting": "diffusion.processes.mean_reverting",
        "objective": "diffusion.training.objective",
        "oracle": "diffusion.denoisers.oracle",
        "parameterisation": "diffusion.denoisers.parameterisation",
        "posterior": "diffusion.denoisers.posterior",
        "preconditioning": "diffusion.denoisers.preconditioning",
        "predictor": "diffusion.sampling.predictor",
        "process": "diffusion.processes.process",
        "profile": "diffusion.sampling.profile",
        "reclocked": "diffusion.sampling.reclocked",
        "reverse": "diffusion.sampling.reverse",
        "reverse_diffusion": "diffusion.sampling.reverse_diffusion",
        "reversion": "diffusion.processes.reversion",
        "sample": "diffusion.sampling.sample",
        "schedule": "diffusion.processes.schedule",
        "scheduled": "diffusion.processes.scheduled",
        "table": "diffusion.processes.table",
        "threshold": "diffusion.denoisers.threshold",
        "time_law": "diffusion.training.time_law",
        "transition": "diffusion.processes.transition",
        "variance": "diffusion.processes.variance",
    },
}

MOVED = {f"dxdt.{room}.{old}": f"dxdt.{new}" for room, names in _ROOMS.items() for old, new in names.items()}
"""Full name of a module in version 0.1 -> its full name today."""


class _FormerRoom(ModuleType):
    """The room that was `dxdt.solve`: callable, because the import system binds it to the function's name."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return importlib.import_module("dxdt.diffeq").solve(*args, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("dxdt.diffeq"), name)


class _Former(MetaPathFinder, Loader):
    """Finds modules under the names they had."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "dxdt.solve" and fullname not in MOVED:
            return None
        new = MOVED.get(fullname, "dxdt.diffeq")
        warnings.warn(f"{fullname} is {new} now; the old name will go", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, self, is_package=fullname == "dxdt.solve")

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.name == "dxdt.solve":
            room = _FormerRoom(spec.name, "The equations and solvers of version 0.1; see dxdt.diffeq.")
            room.__path__ = []
            return room
        return _alias(spec.name, importlib.import_module(MOVED[spec.name]))

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the module that the name stands for is loaded."""


class _FormerModule(ModuleType):
    """A module under its old name; called, it is the function of that name, which the import system hides behind it."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **keywords)


def _alias(old: str, module: ModuleType) -> ModuleType:
    """A module under its old name, with the same objects in it, and with what else is public in its room."""
    alias = _FormerModule(old, module.__doc__)
    door = importlib.import_module(".".join(module.__name__.split(".")[:2]))
    alias.__dict__["__getattr__"] = lambda name: getattr(door, name)
    alias.__dict__.update({k: v for k, v in vars(module).items() if k not in ("__name__", "__spec__", "__loader__")})
    return alias


def install() -> None:
    """Make old names importable."""
    if not any(isinstance(finder, _Former) for finder in sys.meta_path):
        sys.meta_path.append(_Former())
