"""``describe``: what a planner needs of a GGUF file's header, as one line."""

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any, List, Optional

from . import sbr, wirejson
from .wiretools import MakeRequest


@dataclass(frozen=True)
class TensorFacts:
    """One tensor; ``shape`` with the fastest dimension first."""

    name: str
    shape: List[int]
    bytes: int


@dataclass(frozen=True)
class ModelHeader:
    """The line of ``describe``. ``problem`` says why there is no more; ``n_expert`` 0: the file says
    nothing of experts."""

    path: str
    problem: str = ""
    architecture: str = ""
    n_expert: int = 0
    n_expert_used: int = 0
    tensors: List[TensorFacts] = field(default_factory=list)


def header(library: sbr.Library, path: str) -> ModelHeader:
    """Reads a file's header. Raises NativeError for a file that is no GGUF."""
    found = sbr.describe(library, path, 1)
    keys = {item["key"]: item.get("value") for item in found["metadata"]}
    architecture = str(keys.get("general.architecture", ""))
    tensors = [
        TensorFacts(str(tensor["name"]), [int(n) for n in tensor["shape"]], int(tensor["bytes"]))
        for tensor in found["tensors"]
    ]
    n_expert = _count(keys.get(architecture + ".expert_count"))
    return ModelHeader(
        path, "", architecture, n_expert, _count(keys.get(architecture + ".expert_used_count")), tensors
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def run(_args: Optional[argparse.Namespace] = None) -> int:
    """MakeRequest (path and library) on stdin -> one ModelHeader line, whether it could be read or not."""
    request = wirejson.loads(MakeRequest, sys.stdin.readline())
    library = sbr.load(request.library)
    try:
        found = header(library, request.path)
    except sbr.NativeError as error:
        found = ModelHeader(request.path, str(error))
    sys.stdout.write(wirejson.dumps(found) + "\n")
    return 0
