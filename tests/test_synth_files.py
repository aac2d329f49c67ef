"""Synthetic files as an outsider reads them: the ``gguf`` package, and the bytes themselves."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from stbench.agent import sbr
from stbench.agent.wire import SynthSpec
from stbench.models import gemma3n
from tests.shapes import QWEN3, SMALLTHINKER

LLAMA = dataclasses.replace(QWEN3, architecture="llama", weight_type="q8_0")
QWEN3MOE = dataclasses.replace(QWEN3, architecture="qwen3moe", n_expert=8, n_expert_used=2)
GEMMA3N = dataclasses.replace(QWEN3, architecture="gemma3n", tied_output=True, sliding_window=64, n_layer=6)

# SHA-256 of the files. They change only together with the generator's version (src/synth/header.cpp).
GOLDEN = {
    ("smallthinker", "f32"): "f6c546fc52f6a99f875b4b72926cd1fb9a7b14a2730ae7127e5977eabcd54d5d",
    ("smallthinker", "f16"): "879ca106e1364d05d43461cc923d4a53cef2fddc6b9d8d29443d2fdd3f0b4ef0",
    ("smallthinker", "q8_0"): "6c0b0a81f2ffcf5be65ce7963a0a38d5a32759bf1f6632f570e19448b2102cdf",
    ("smallthinker", "q4_0"): "ae38130eb898c376145fe5f8aff6b98735b796b55bcc325963367836a051901b",
    ("qwen3", "f32"): "16d043cc3aff942592cabd830f49c9c0ad3b5a9d80df3e100c1dcdedf3089977",
    ("qwen3", "f16"): "0cd30ca4dfc03330a968ffd318f0cca9b8c69a20d746d92f2b33d822ece1e06e",
    ("qwen3", "q8_0"): "dfc965c9480d4a1363efbc933f6ca0512ade7cb1024a3ba68608ddcc68c8db69",
    ("qwen3", "q4_0"): "372b461362f9221846224f1fb27051a665a155efd3e0b5cbcf60e894895c4416",
    ("llama", "f32"): "880310ebf7ebe33c574e3672b59df0abd6646ac6e58bd99f612277d78a41ab0d",
    ("llama", "f16"): "3bc5420ea9a71fa28ddd98f20a8a01c512abf942ba2f6e681bad5219506e4282",
    ("llama", "q8_0"): "81293513a488f6421355718f2383336eb24db965b0a81928c982a2598088ab27",
    ("qwen3moe", "q4_0"): "264e68035f071e296943950846d3182c25a4fb9374cbd676b8a031ce65784e46",
    ("qwen3moe", "q8_0"): "ab1992d89c96a1d1ea0ff713a5b0a504e46e967487921e1382d3ce6d762f5e64",
    ("gemma3n", "q4_0"): "fa6fbcd4138ae62c7fb78074607eb5bbea1a10b9b4ed2aad5d8cd7115b8459e8",
    ("gemma3n", "q8_0"): "b518a38163d56970bb9ab798202e611f733c1e764346429aad08245dd23a82db",
    ("llama", "q4_0"): "be78f6466f0777934a4392b9133bb1ad4b0db917130093af45dfd6a9a0ce26de",
}
SPECS = {spec.architecture: spec for spec in (SMALLTHINKER, QWEN3, LLAMA, QWEN3MOE, GEMMA3N)}


@pytest.fixture(scope="module")
def library(library_path: Path) -> sbr.Library:
    return sbr.load(str(library_path))


def write(library: sbr.Library, spec: SynthSpec, path: Path) -> gguf.GGUFReader:
    sbr.synth_write(library, dataclasses.asdict(spec), str(path))
    return gguf.GGUFReader(path)


def fields(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def values(reader: gguf.GGUFReader) -> dict[str, NDArray[np.float32]]:
    """Every tensor as floats, in numpy's order of dimensions."""
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])
        for t in reader.tensors
    }


@pytest.mark.parametrize(("architecture", "weight_type"), GOLDEN)
def test_the_bytes_are_the_same_everywhere(
    architecture: str, weight_type: str, tmp_path: Path, library: sbr.Library
) -> None:
    spec = dataclasses.replace(SPECS[architecture], weight_type=weight_type)
    path = tmp_path / "model.gguf"
    write(library, spec, path)
    assert path.stat().st_size == sbr.synth_size(library, dataclasses.asdict(spec))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == GOLDEN[architecture, weight_type]
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_every_part_of_the_seed_counts(tmp_path: Path, library: sbr.Library) -> None:
    digests = set()
    for seed in (0, 1, 42, 42 + (1 << 32), (1 << 64) - 1):
        write(library, dataclasses.replace(QWEN3, seed=seed), tmp_path / "model.gguf")
        digests.add(hashlib.sha256((tmp_path / "model.gguf").read_bytes()).hexdigest())
    assert len(digests) == 5


def test_keys_of_smallthinker(tmp_path: Path, library: sbr.Library) -> None:
    spec = dataclasses.replace(SMALLTHINKER, sliding_window=256)
    found = fields(write(library, spec, tmp_path / "model.gguf"))
    tokens = found.pop("tokenizer.ggml.tokens")
    types = found.pop("tokenizer.ggml.token_type")
    eps = found.pop("smallthinker.attention.layer_norm_rms_epsilon")
    assert eps == pytest.approx(1e-6)
    assert found == {
        "general.architecture": "smallthinker",
        "general.name": "golden",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "general.alignment": 32,
        "smallthinker.block_count": 2,
        "smallthinker.context_length": 512,
        "smallthinker.embedding_length": 64,
        "smallthinker.feed_forward_length": 96,
        "smallthinker.expert_feed_forward_length": 96,
        "smallthinker.expert_count": 8,
        "smallthinker.expert_used_count": 2,
        "smallthinker.expert_gating_func": 2,
        "smallthinker.attention.head_count": 4,
        "smallthinker.attention.head_count_kv": 2,
        "smallthinker.attention.key_length": 32,
        "smallthinker.attention.value_length": 32,
        "smallthinker.attention.sliding_window": 256,
        "smallthinker.rope.freq_base": 1.5e6,
        "smallthinker.vocab_size": 300,
        "stbench.synthetic.generator_version": 1,
        "stbench.synthetic.seed": 42,
        "stbench.synthetic.zero_share": [950, 700],
        "stbench.synthetic.hot_experts": 2,
        "stbench.synthetic.hot_share": 600,
        "stbench.synthetic.lm_head_keep": 100,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.merges": ["Ġ t"],
        "tokenizer.ggml.bos_token_id": 299,
        "tokenizer.ggml.eos_token_id": 299,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert len(tokens) == len(set(tokens)) == len(types) == 300
    assert all(token.isprintable() for token in tokens)
    assert (tokens[ord("a")], tokens[ord(" ")], tokens[256], tokens[299]) == ("a", "Ġ", "Ġt", "<|endoftext|>")
    assert types == [1] * 299 + [3]


def test_a_file_without_a_window_or_with_own_output_says_so(tmp_path: Path, library: sbr.Library) -> None:
    reader = write(library, dataclasses.replace(SMALLTHINKER, tied_output=False), tmp_path / "model.gguf")
    assert "smallthinker.attention.sliding_window" not in fields(reader)
    assert "output.weight" in values(reader)
    llama = fields(write(library, LLAMA, tmp_path / "llama.gguf"))
    assert llama["llama.rope.dimension_count"] == 32
    assert llama["general.file_type"] == 7
    assert llama["stbench.synthetic.seed"] == 42


def test_shapes_and_types(tmp_path: Path, library: sbr.Library) -> None:
    reader = write(library, SMALLTHINKER, tmp_path / "model.gguf")
    found = {t.name: ([int(n) for n in t.shape], t.tensor_type.name) for t in reader.tensors}
    expected = {
        "token_embd.weight": ([64, 300], "Q4_0"),
        "output_norm.weight": ([64], "F32"),
        "lm_head_profiler.weight": ([64 * (64 + 300)], "Q4_0"),
    }
    for block in ("blk.0.", "blk.1."):
        expected |= {
            block + "attn_norm.weight": ([64], "F32"),
            block + "attn_q.weight": ([64, 128], "Q4_0"),
            block + "attn_k.weight": ([64, 64], "Q4_0"),
            block + "attn_v.weight": ([64, 64], "Q4_0"),
            block + "attn_output.weight": ([128, 64], "Q4_0"),
            block + "ffn_norm.weight": ([64], "F32"),
            block + "ffn_gate_inp.weight": ([64, 8], "F32"),
            block + "ffn_gate_exps.weight": ([64, 96, 8], "Q4_0"),
            block + "ffn_up_exps.weight": ([64, 96, 8], "Q4_0"),
            block + "ffn_down_exps.weight": ([64, 96, 8], "Q4_0"),
        }
    assert found == expected

    reader = write(library, QWEN3, tmp_path / "qwen3.gguf")
    found = {t.name: ([int(n) for n in t.shape], t.tensor_type.name) for t in reader.tensors}
    assert len(found) == 3 + 2 * 11
    assert found["output.weight"] == ([64, 300], "Q4_0")
    assert found["blk.1.attn_k_norm.weight"] == ([32], "F32")
    assert found["blk.1.ffn_gate.weight"] == ([64, 96], "Q4_0")
    assert found["blk.1.ffn_down.weight"] == ([96, 64], "Q4_0")
    llama = values(write(library, LLAMA, tmp_path / "llama.gguf"))
    assert found.keys() - llama.keys() == {f"blk.{n}.attn_{x}_norm.weight" for n in (0, 1) for x in "qk"}


def test_keys_and_tensors_of_qwen3moe(tmp_path: Path, library: sbr.Library) -> None:
    reader = write(library, QWEN3MOE, tmp_path / "model.gguf")
    found = fields(reader)
    own = {key: value for key, value in found.items() if key.startswith("qwen3moe.")}
    assert own.pop("qwen3moe.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert own == {
        "qwen3moe.block_count": 2,
        "qwen3moe.context_length": 512,
        "qwen3moe.embedding_length": 64,
        # As in the released files: what the selected experts are together.
        "qwen3moe.feed_forward_length": 2 * 96,
        "qwen3moe.expert_feed_forward_length": 96,
        "qwen3moe.expert_count": 8,
        "qwen3moe.expert_used_count": 2,
        "qwen3moe.attention.head_count": 4,
        "qwen3moe.attention.head_count_kv": 2,
        "qwen3moe.attention.key_length": 32,
        "qwen3moe.attention.value_length": 32,
        "qwen3moe.rope.freq_base": 1.5e6,
        "qwen3moe.vocab_size": 300,
    }
    shapes = {t.name: ([int(n) for n in t.shape], t.tensor_type.name) for t in reader.tensors}
    assert len(shapes) == 3 + 2 * 12
    assert shapes["output.weight"] == ([64, 300], "Q4_0")
    assert shapes["blk.1.ffn_gate_inp.weight"] == ([64, 8], "F32")
    assert shapes["blk.1.ffn_up_exps.weight"] == ([64, 96, 8], "Q4_0")
    assert shapes["blk.1.ffn_down_exps.weight"] == ([96, 64, 8], "Q4_0")
    assert shapes["blk.1.attn_q_norm.weight"] == ([32], "F32")


def test_keys_and_tensors_of_gemma3n(tmp_path: Path, library: sbr.Library) -> None:
    spec = dataclasses.replace(GEMMA3N, n_layer=22)
    reader = write(library, spec, tmp_path / "model.gguf")
    found = fields(reader)
    scales = found.pop("gemma3n.activation_sparsity_scale")
    assert scales == [pytest.approx(1.6448533535003662)] * 10 + [-np.inf] * 12
    pattern = found.pop("gemma3n.attention.sliding_window_pattern")
    assert [layer for layer, windowed in enumerate(pattern) if not windowed] == [4, 9, 14, 19]
    own = {key: value for key, value in found.items() if key.startswith("gemma3n.")}
    assert own.pop("gemma3n.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert own == {
        "gemma3n.block_count": 22,
        "gemma3n.context_length": 512,
        "gemma3n.embedding_length": 64,
        "gemma3n.embedding_length_per_layer_input": 256,
        "gemma3n.altup.num_inputs": 4,
        "gemma3n.altup.active_idx": 0,
        "gemma3n.feed_forward_length": 96,
        "gemma3n.attention.head_count": 4,
        "gemma3n.attention.head_count_kv": 2,
        "gemma3n.attention.key_length": 32,
        "gemma3n.attention.value_length": 32,
        "gemma3n.attention.sliding_window": 64,
        "gemma3n.attention.shared_kv_layers": 2,
        "gemma3n.rope.freq_base": 1.5e6,
        "gemma3n.vocab_size": 300,
    }
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[:5] == ["<pad>", "<eos>", "<bos>", "<unk>", "<0x00>"]
    assert tokens[259] == "<0xFF>"
    assert len(set(tokens)) == len(found["tokenizer.ggml.scores"]) == 300
    assert types == [3, 3, 3, 2] + [6] * 256 + [1] * 40
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.bos_token_id"]) == ("llama", 2)
    shapes = {t.name: (tuple(int(n) for n in t.shape), t.tensor_type.name.lower()) for t in reader.tensors}
    assert shapes == gemma3n.tensors(spec)
    for name, floats in values(reader).items():
        assert np.isfinite(floats).all(), name


@pytest.mark.parametrize("weight_type", ["f32", "f16", "q8_0", "q4_0"])
def test_twins_hold_the_same_values(weight_type: str, tmp_path: Path, library: sbr.Library) -> None:
    spec = dataclasses.replace(SMALLTHINKER, weight_type=weight_type)
    plain = dataclasses.replace(spec, transposed_down=False, predictor_rank=0)
    transposed = values(write(library, spec, tmp_path / "transposed.gguf"))
    standard = values(write(library, plain, tmp_path / "standard.gguf"))
    assert transposed.keys() - standard.keys() == {"lm_head_profiler.weight"}
    for name, theirs in standard.items():
        ours = transposed[name].swapaxes(1, 2) if "ffn_down_exps" in name else transposed[name]
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_block_scales_differ(tmp_path: Path, library: sbr.Library) -> None:
    """Blocks that share a few scales would flatter implementations that look halves up in a table."""
    reader = write(library, SMALLTHINKER, tmp_path / "model.gguf")
    for tensor in reader.tensors:
        if tensor.tensor_type.name != "Q4_0" or "down" in tensor.name:
            continue
        blocks = tensor.data.reshape(-1, 18)
        scales = np.unique(blocks[:, :2].copy().view(np.uint16))
        assert len(scales) > 0.15 * len(blocks), tensor.name


def test_refusals_name_the_member(tmp_path: Path, library: sbr.Library) -> None:
    with pytest.raises(sbr.NativeError, match="weight_type q6_k is not supported") as caught:
        write(library, dataclasses.replace(SMALLTHINKER, weight_type="q6_k"), tmp_path / "model.gguf")
    assert caught.value.name == "unsupported"
    with pytest.raises(sbr.NativeError, match=r"no/such/dir/model\.gguf: cannot be created: No such file"):
        write(library, SMALLTHINKER, tmp_path / "no/such/dir/model.gguf")
    huge = dataclasses.replace(
        SMALLTHINKER, n_layer=1024, n_embd=65536, n_expert=4096, n_ff=1 << 20, zero_share=None
    )
    with pytest.raises(
        sbr.NativeError, match=r"model\.gguf: needs \d+ bytes, but its file system has only \d+"
    ):
        write(library, huge, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []
