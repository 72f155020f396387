"""Processes whose time runs through a schedule."""

from __future__ import annotations

from dxdt.diffusion.processes.process import Process
from dxdt.diffusion.processes.schedule import Schedule
from dxdt.diffusion.processes.table import Smooth, Table

__all__ = ["Scheduled"]


class Scheduled(Process):
    """A process that begins and ends with its schedule, and jumps where that does."""

    schedule: Schedule

    @property
    def t0(self) -> float:
        """That of the schedule."""
        return self.schedule.t0

    @property
    def t1(self) -> float:
        """That of the schedule."""
        return self.schedule.t1

    @property
    def jumps(self) -> bool:
        """Whether the schedule is a table that is not smooth."""
        return isinstance(self.schedule, Table) and not isinstance(self.schedule.interpolation, Smooth)
