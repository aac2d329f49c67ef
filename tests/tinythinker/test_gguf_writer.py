"""What the writer writes is what others read: the runtime, and the ``gguf`` package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from stbench import native
from stbench.agent import sbr
from tests.tinythinker.gguf_writer import GgufFile, quantise_q4_0

KEYS = {
    "general.architecture": "test",
    "a.count": 7,
    "a.number": 0.5,
    "a.switch": True,
    "a.words": ["one", "zwölf"],
    "a.types": [3, 1, 1],
}


def random_values(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    file = GgufFile(dict(KEYS))
    # 5 floats need padding before the next tensor.
    file.add("norm.weight", random_values(5), "f32")
    file.add("experts.weight", random_values(3, 4, 64), "q4_0")
    file.add("half.weight", random_values(2, 7), "f16")
    path = tmp_path / "file.gguf"
    assert file.write(path) == path.stat().st_size
    return path


def test_runtime_reads_it(written: Path, library: sbr.Library) -> None:
    assert native.metadata(library, written) == KEYS
    tensors = {t["name"]: t for t in native.describe(library, written)["tensors"]}
    assert tensors["experts.weight"]["shape"] == [64, 4, 3]
    assert [t["type"] for t in tensors.values()] == ["f32", "q4_0", "f16"]
    assert all(t["offset"] % 32 == 0 for t in tensors.values())


def test_gguf_package_reads_the_same_values(written: Path) -> None:
    reader = gguf.GGUFReader(written)
    assert {name: reader.fields[name].contents() for name in KEYS} == KEYS
    norm, experts, half = reader.tensors
    assert np.array_equal(norm.data, random_values(5))
    assert np.array_equal(half.data, random_values(2, 7).astype(np.float16))
    values = random_values(3, 4, 64)
    assert np.array_equal(experts.data, gguf.quantize(values, gguf.GGMLQuantizationType.Q4_0))
    error = np.abs(gguf.dequantize(experts.data, experts.tensor_type) - values)
    # Steps are an eighth of a block's largest weight; the upper end of the range is one step short.
    assert error.max() <= np.abs(values).max() / 8 * 1.01
    assert error.mean() < 0.1


def test_q4_0_of_its_own_values_is_itself() -> None:
    once = quantise_q4_0(random_values(16, 96))
    values = gguf.dequantize(once, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(quantise_q4_0(values), once)
    nothing = quantise_q4_0(np.zeros((1, 32), np.float32))
    assert not gguf.dequantize(nothing, gguf.GGMLQuantizationType.Q4_0).any()


def test_refuses_what_it_cannot_hold() -> None:
    file = GgufFile({"a.nothing": None})
    file.add("a", random_values(32), "q4_0")
    with pytest.raises(ValueError, match="there already"):
        file.add("a", random_values(32), "q4_0")
    with pytest.raises(ValueError, match="whole blocks of 32"):
        file.add("b", random_values(3, 40), "q4_0")
    with pytest.raises(TypeError, match="None"):
        file.write(Path("never.gguf"))
