"""Sweeps that have a name: the published tables, and what is held against llama.cpp."""

from __future__ import annotations

import re
from typing import Any

from stbench.devices.engine_names import ENGINE, LLAMA_BENCH
from stbench.models import catalogue

# The prompt of the published command line, in tokens of the Qwen2 vocabulary that these models share:
# 3 + 6 + 2 (system turn) + 3 + 21 + 2 (user turn) + 2 (assistant header), counted with the vocabulary's
# merges. The text: "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nCalculate
# the integral of f(x) = sin(x) from 0 to 3pi/4.<|im_end|>\n<|im_start|>assistant".
PUBLISHED_PROMPT_TOKENS = 39

# Untimed tokens before those of a limited row: a cold cache is full by then (room for 8 of 32 experts of a
# layer of which 4 are used per token), and what is timed is the steady state.
CACHE_WARMUP_TOKENS = 32


def _unlimited(case: str) -> tuple[str, str]:
    """Which labels of a case have neither limit nor cache: its compute rate, which limited runs are held
    against (docs/limited-sweeps.md). Labels of others end in a limit's or a cache's unit before the
    workload."""
    return f"*:{case}/t*[0-9]/[pt][pg]*", f"*:{case}/tauto/[pt][pg]*"


# Filters name no value of an axis but the switches, so that a preset is itself under another limit too.
_UNLIMITED_PARTNERS = (*_unlimited("smallthinker-4b/sparse+lmhead"), *_unlimited("qwen3-1.7b/*"))
_UNLIMITED_PARTNERS_21B = (*_unlimited("smallthinker-21b/sparse"), *_unlimited("qwen3-30b-a3b/*"))

PRESETS: dict[str, dict[str, Any]] = {
    # The 4B table of the published page: its prompt's length, 256 tokens, a context of 4096 that is allocated
    # and touched. Threads are the device's (devices.yaml: 4 on the two big machines, several elsewhere, of
    # which the table takes the fastest; all CPUs on `local`).
    "published-4b": {
        "models": ["smallthinker-4b", "qwen3-0.6b", "qwen3-1.7b"],
        "sparse_ffn": ["on", "off"],
        "sparse_lm_head": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 256]],
        "n_ctx": 4096,
        "replicates": 6,
    },
    # The unlimited rows of the 21B table. Its models take up to 17 GB each, so there is one at a time; Gemma
    # 3n runs in llama.cpp alone.
    "published-21b": {
        "models": ["smallthinker-21b", "qwen3-30b-a3b", "gemma3n-e4b", "gemma3n-e2b"],
        "engines": [ENGINE, LLAMA_BENCH],
        "sparse_ffn": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 256]],
        "n_ctx": 4096,
        "replicates": 6,
        "one_model_at_a_time": True,
    },
    # The limited rows of the 4B table: 1 GiB, a context of 4096 that is allocated and touched, so that of
    # Qwen3 1.7B 0.9 GiB of weights and 0.44 GiB of KV cache do not fit together. Its published rows show what
    # mapping the file costs then (no cache); ours streams layers beside it.
    "limited-4b": {
        "models": ["smallthinker-4b", "qwen3-1.7b"],
        "sparse_ffn": ["on", "off"],
        "sparse_lm_head": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 256]],
        "n_ctx": 4096,
        "memory_limit": ["1GiB", "none"],
        "cache": ["auto", "none"],
        "filter": [
            *("*:smallthinker-4b/sparse+lmhead/*/mem*/cache*", "*:qwen3-1.7b/*/mem*"),
            *("*/llama-bench/*/mem*", *_UNLIMITED_PARTNERS),
        ],
        "warmup": CACHE_WARMUP_TOKENS,
        "replicates": 6,
    },
    # The other reading of "Qwen3 1.7B, 1.3 GiB": with a context that just holds the workload, its pure
    # weights fit into 1 GiB.
    "limited-4b-small-context": {
        "models": ["qwen3-1.7b"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 256]],
        "n_ctx": 320,
        "memory_limit": ["1GiB"],
        "cache": ["auto", "none"],
        "warmup": CACHE_WARMUP_TOKENS,
        "replicates": 6,
    },
    # The limited rows of the 21B table: 8 GiB. A model and its bundle take 23 to 34 GB of disk, one model
    # after the other. Its unlimited partners run where the device has the memory for them.
    "limited-21b": {
        "models": ["smallthinker-21b", "qwen3-30b-a3b"],
        "sparse_ffn": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 256]],
        "n_ctx": 4096,
        "memory_limit": ["8GiB", "none"],
        "cache": ["auto", "none"],
        "filter": [
            *("*:smallthinker-21b/sparse/*/mem*/cache*", "*:qwen3-30b-a3b/*/mem*/cache*"),
            *_UNLIMITED_PARTNERS_21B,
        ],
        "warmup": CACHE_WARMUP_TOKENS,
        "replicates": 6,
        "one_model_at_a_time": True,
    },
    # Tokens/s and hit rate against the cache's size under one limit, which `stbench simulate --plot` draws
    # beside the oracles; the unlimited case says how fast it computes.
    "cache-sizes-4b": {
        "models": ["smallthinker-4b"],
        "sparse_ffn": ["on"],
        "sparse_lm_head": ["on"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 256]],
        "n_ctx": 4096,
        "memory_limit": ["1GiB", "none"],
        "cache": ["64MiB", "128MiB", "256MiB", "512MiB", "auto", "none"],
        "filter": ["*/mem*/cache*", *_UNLIMITED_PARTNERS[:2]],
        "record_routing": True,
        "warmup": CACHE_WARMUP_TOKENS,
        "replicates": 3,
    },
    # The same rows as published-4b, shorter: what the README's command runs.
    "quick": {
        "models": ["smallthinker-4b", "qwen3-0.6b", "qwen3-1.7b"],
        "sparse_ffn": ["on", "off"],
        "sparse_lm_head": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 64]],
        "n_ctx": 4096,
        "replicates": 3,
    },
    # Our engine beside llama.cpp, whose ratios end the sweep (stbench/data/bars.csv). Dense rows run the very
    # file that llama.cpp runs: rows of down that lie by neuron are for skipping. Sparse switches change
    # decoding only, and no bar is set for the lm_head alone.
    "versus-llama-cpp": {
        "models": ["smallthinker-4b", "smallthinker-4b:standard", "qwen3-0.6b", "qwen3-1.7b"],
        "engines": [ENGINE, LLAMA_BENCH],
        "sparse_ffn": ["on", "off"],
        "sparse_lm_head": ["on", "off"],
        "threads": [1, "all"],
        "prompt": [512],
        "gen": [128],
        "filter": [
            *("*:standard/dense/*", "*:qwen3*/dense/*", "*/llama-bench/*"),
            *(f"*:smallthinker-4b/sparse{both}/*{tg}*" for both in ("", "+lmhead") for tg in ("/tg", "+tg")),
        ],
        "replicates": 9,
    },
    # The same of the large models, one at a time on 24 GiB. Both engines run one file, so that they are
    # measured in the same minute: SmallThinker's in llama.cpp's layout.
    "versus-llama-cpp-21b": {
        "models": ["smallthinker-21b:standard", "qwen3-30b-a3b"],
        "engines": [ENGINE, LLAMA_BENCH],
        "threads": [1, "all"],
        "gen": [128],
        "replicates": 9,
        "one_model_at_a_time": True,
    },
}

# What a preset measures besides when llama-bench is among the engines: the published rows that only llama.cpp
# can fill. Without it nobody has to build llama.cpp, or write 2.6 GB more.
WITH_LLAMA_BENCH = {"published-4b": ["gemma3n-e2b"], "quick": ["gemma3n-e2b"]}


def instead_of_file(word: str) -> str:
    """What to type in place of a sweep's file that cannot be read."""
    if word in PRESETS:
        return f"--preset {word}"
    if word in catalogue.names():
        return f"--models {word}"
    if re.fullmatch(r"[KMG]i?B?", word, re.IGNORECASE):
        return f"a size is one word, such as 1{word}"
    return "the path of a sweep's YAML file; or --preset NAME, or --models LIST"
