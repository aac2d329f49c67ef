"""A cache policy of the user's own, from ``FILE.py:CLASS``: the class that the simulator asks whom to evict.

    class Fifo:
        def __init__(self, shape):  # .n_layer .units_per_layer .units_per_token .capacity
            self.order = []
        def used(self, unit):       # unit = layer * units_per_layer + expert; it is in the cache from now on
            if unit not in self.order:
                self.order.append(unit)
        def evict(self, held):      # return a unit for which held[unit] is 0, and forget it
            victim = next(unit for unit in self.order if not held[unit])
            self.order.remove(victim)
            return victim

``__init__`` may take no argument, and the class may extend a built-in one such as OrderedDict. The code runs
in this process, with all rights: it is the user's own.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stbench.agent.routing import Routing
from stbench.caches.simulate import Outcome, Simulator
from stbench.errors import InputError, UsageError


@dataclass(frozen=True)
class Shape:
    """What a policy is told; ``capacity`` in units, ``units_per_token`` those of one layer."""

    n_layer: int
    units_per_layer: int
    units_per_token: int
    capacity: int


def load(text: str) -> Simulator:
    """The policy that ``FILE.py:CLASS`` names. Raises :class:`UsageError` for what is not there and
    :class:`InputError`, with file and line, for what the file does wrong, also later while it runs."""
    name, _, kind = text.rpartition(":")
    path = Path(name)
    if not name or not kind.isidentifier():
        raise UsageError(f"--policy {text}: expected FILE.py:CLASS", hint="--policy mine.py:Fifo")
    if not path.is_file():
        raise UsageError(f"--policy {text}: there is no file {path}")
    spec = importlib.util.spec_from_file_location("stbench_user_policy", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--policy {text}: {path} is not a Python file; its name ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling in the file look their module up.
    sys.modules[spec.name] = module
    _called(path, f"{path} cannot be imported", lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    policy = getattr(module, kind, None)
    if not inspect.isclass(policy):
        raise UsageError(f"--policy {text}: {path} has no class {kind}")
    for method in ("used", "evict"):
        if not callable(getattr(policy, method, None)):
            raise InputError(
                f"{path}:{_line(policy)}: {kind} has no method {method}", hint="docs/simulate.md"
            )

    def run(trace: Routing, capacity: int, warmup: int) -> Outcome:
        return _run(path, policy, trace, capacity, warmup)

    return run


def _line(policy: type) -> int:
    try:
        return inspect.getsourcelines(policy)[1]
    except (OSError, TypeError):
        return 1


def _called(path: Path, what: str, call: Callable[[], Any]) -> Any:
    """The call's result; what it raises is named with the last line of the user's file that took part."""
    try:
        return call()
    except SyntaxError as error:
        raise InputError(f"{error.filename or path}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        own = os.path.abspath(path)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if os.path.abspath(f.filename) == own]
        where = f"{path}:{frames[-1].lineno}" if frames else str(path)
        raise InputError(f"{where}: {what}: {type(error).__name__}: {error}") from error


def _run(path: Path, kind: type, trace: Routing, capacity: int, warmup: int) -> Outcome:
    shape = Shape(trace.n_layer, trace.n_expert, trace.n_expert_used, capacity)
    begin = time.monotonic()
    policy = _called(path, f"{kind.__name__}()", lambda: kind(shape) if _takes_shape(kind) else kind())
    return _Loop(path, kind.__name__, policy, trace, capacity).run(warmup, begin)


def _takes_shape(kind: Any) -> bool:
    """Whether its ``__init__`` has a parameter beside self. One of Python itself (of dict, of UserDict) is
    not the user's and takes something else."""
    init = kind.__init__
    if not inspect.isfunction(init) or (init.__module__ or "").partition(".")[0] in sys.stdlib_module_names:
        return False
    return len(inspect.signature(init).parameters) > 1


class _Loop:
    """What simulate.cpp does, one call at a time."""

    def __init__(self, path: Path, name: str, policy: Any, trace: Routing, capacity: int) -> None:
        self.path, self.name, self.policy, self.trace = path, name, policy, trace
        n_units = trace.n_layer * trace.n_expert
        self.capacity = self.free = min(capacity, n_units)
        self.cached = bytearray(n_units)
        self.held = bytearray(n_units)

    def run(self, warmup: int, begin: float) -> Outcome:
        trace, used = self.trace, self.trace.n_expert_used
        sets = [0] * (used + 1)
        place = 0
        for token in range(trace.n_tokens):
            for layer in range(trace.n_layer):
                base = layer * trace.n_expert
                missed = self.acquire([base + e for e in trace.experts[place : place + used]])
                sets[missed] += token >= warmup
                place += used
        requests = sum(sets) * used
        hits = requests - sum(misses * count for misses, count in enumerate(sets))
        return Outcome(requests, hits, tuple(sets), time.monotonic() - begin)

    def acquire(self, units: list[int]) -> int:
        missing = [unit for unit in units if not self.cached[unit]]
        for unit in units:
            if self.cached[unit]:
                self.use(unit)
        for unit in missing:
            self.make_room(units)
            self.cached[unit] = 1
            self.use(unit)
        self.release(units)
        return len(missing)

    def use(self, unit: int) -> None:
        self.held[unit] = 1
        _called(self.path, f"{self.name}.used({unit})", lambda: self.policy.used(unit))

    def release(self, units: list[int]) -> None:
        for unit in units:
            self.held[unit] = 0

    def make_room(self, units: list[int]) -> None:
        if self.free:
            self.free -= 1
            return
        if sum(self.held[unit] for unit in units) == self.capacity:
            # The set is larger than the cache: what it holds is computed and released first.
            self.release(units)
        # A copy: what a policy writes there is its own affair.
        held = bytes(self.held)
        victim = _called(self.path, f"{self.name}.evict()", lambda: self.policy.evict(held))
        wrong = ""
        if type(victim) is not int or not 0 <= victim < len(self.cached):
            wrong = f"returned {victim!r}, expected a unit, 0 to {len(self.cached) - 1}"
        elif not self.cached[victim]:
            wrong = f"returned unit {victim}, which is not in the cache"
        elif self.held[victim]:
            wrong = f"returned unit {victim}, which is held"
        if wrong:
            line = _line(type(self.policy))
            raise InputError(f"{self.path}:{line}: {self.name}.evict() {wrong}", hint="docs/simulate.md")
        self.cached[victim] = 0
