"""What is in a GGUF file, and what the runtime would do with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from stbench import native
from stbench.agent import sbr
from stbench.errors import StbenchError

DOWN_WORDS = {
    "none": "no ReLU experts: nothing to skip",
    "standard": "standard: the sparse FFN skips in gate and up only, unless down is re-quantised at load",
    "transposed": "transposed: the sparse FFN skips in up and down",
}


def inspect_file(library: sbr.Library, path: Path, max_array_items: int = 8) -> dict[str, Any]:
    """The file's header with totals and the runtime's view of it, JSON-ready.

    Raises :class:`stbench.errors.InputError` when the file is unreadable or not a well-formed GGUF; a
    well-formed file that cannot be run is described all the same.
    """
    description = native.describe(library, path, max_array_items)
    return {
        "path": str(path),
        **description,
        "totals": totals(description["tensors"]),
        "synthetic": native.is_synthetic({item["key"]: None for item in description["metadata"]}),
        "runtime": runtime_view(library, path),
    }


def totals(tensors: list[dict[str, Any]]) -> dict[str, Any]:
    """Parameters and bytes, altogether and per tensor type."""
    types: dict[str, Counter[str]] = {}
    for tensor in tensors:
        count = types.setdefault(tensor["type"], Counter())
        elements = 1
        for extent in tensor["shape"]:
            elements *= extent
        count.update(tensors=1, parameters=elements, bytes=tensor["bytes"])
    whole: Counter[str] = Counter()
    for count in types.values():
        whole.update(count)
    return {
        "tensors": whole["tensors"],
        "parameters": whole["parameters"],
        "bytes": whole["bytes"],
        "types": {name: dict(count) for name, count in sorted(types.items())},
    }


def runtime_view(library: sbr.Library, path: Path) -> dict[str, Any]:
    """Whether the runtime runs the file, and how; or the reason why not."""
    try:
        with native.open_model(library, path) as model:
            info = model.info
            return {
                "supported": True,
                "reason": "",
                "warnings": model.warnings(),
                "parameters_active": info.n_params_active,
                "relu": bool(info.relu),
                "down_layout": sbr.DOWN_LAYOUTS[info.down_layout],
                "lm_head_predictor_rank": info.lm_head_predictor_rank,
                "sliding_window": info.sliding_window,
                "tied_output": bool(info.tied_output),
            }
    except StbenchError as error:
        return {"supported": False, "reason": str(error)}
