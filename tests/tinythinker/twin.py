"""tinythinker for llama.cpp: the same values in the layout that it reads.

    python -m tests.tinythinker.twin tests/data/tinythinker.gguf tinythinker-standard.gguf

Down becomes column-major and F32, which holds what Q4_0 held, so that nothing is rounded again; the lm_head
predictor, which llama.cpp does not know, is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

from tests.tinythinker.gguf_writer import GgufFile


def read(path: Path) -> GgufFile:
    """A file that :mod:`gguf_writer` wrote: its keys, and its tensors' values as floats."""
    reader = gguf.GGUFReader(path)
    keys = {name: item.contents() for name, item in reader.fields.items() if not name.startswith("GGUF.")}
    file = GgufFile(keys)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        file.add(tensor.name, values, tensor.tensor_type.name.lower())
    return file


def write_twin(source: Path, path: Path) -> Path:
    """Writes ``path``. Q4_0 values become the same Q4_0 blocks again (a test holds that)."""
    file = read(source)
    del file.tensors["lm_head_profiler.weight"]
    for name, (_, values) in file.tensors.items():
        if name.endswith("ffn_down_exps.weight"):
            file.tensors[name] = ("f32", np.ascontiguousarray(values.transpose(0, 2, 1)))
    file.keys["general.name"] += " for llama.cpp"
    file.write(path)
    return path


if __name__ == "__main__":
    write_twin(Path(sys.argv[1]), Path(sys.argv[2]))
