"""How long jobs may take, guessed before anything is measured: only for planning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stbench.agent import search
from stbench.agent.bracket import CORE_SHARE, GATHER_SHARE, ONE_SHARE, STORAGE_SHARE, uses_storage
from stbench.agent.wire import JobSpec
from stbench.records.roofline import token_bytes
from stbench.sweeps.sweep import ENGINE, FAKE

if TYPE_CHECKING:
    from stbench.sweeps.plan import DeviceModel

# What is assumed: bytes/s of weights per thread (more than four threads rarely add bandwidth), how much
# faster a prompt token is than a generated one, making a model, and one process from its start to the first
# token.
GUESS_READ = 6e9
GUESS_READ_THREADS = 4
GUESS_PREFILL_SPEEDUP = 4.0
GUESS_WRITE = 400e6
# What a disk gives to reads of a limited run, bytes/s, and how much of a memory limit is left to weights.
GUESS_STORAGE = 2e9
GUESS_WEIGHTS_SHARE = 0.6
GUESS_START_S = 1.5
# Decoded to fill a cache: a few rounds of stbench.agent.measure.
WARM_TOKENS = 96
# A bandwidth probe beside a job, without its reading: a process, and the pages of its buffers.
GUESS_PROBE_S = 0.3


def guess_seconds(job: JobSpec, model: DeviceModel) -> float:
    """How long a job may take, from the bytes that a token reads. Only for planning: nothing was measured."""
    per_token = _bytes_per_token(job, model)
    rate = GUESS_READ * min(job.settings.threads, GUESS_READ_THREADS)
    work = job.workload
    warmup = max(job.warmup_tokens, WARM_TOKENS) if job.settings.start == "warm" else job.warmup_tokens
    tokens = work.n_gen + warmup + (work.n_prompt + work.n_depth) / GUESS_PREFILL_SPEEDUP
    load = model.file_bytes / rate if job.engine == ENGINE else 0.0
    token_s = per_token / rate + per_token * _missing_share(job, model) / GUESS_STORAGE
    return GUESS_START_S + _guess_brackets_s(job) + load + tokens * token_s


def _missing_share(job: JobSpec, model: DeviceModel) -> float:
    """Of the weights that a token reads, what a memory limit leaves on storage. Without a cache all of it:
    pages leave in the order in which they come, and are gone when the next token asks for them."""
    room = job.settings.memory_limit_bytes * GUESS_WEIGHTS_SHARE
    if not room or room >= model.file_bytes:
        return 0.0
    return 1 - room / model.file_bytes if job.settings.cache else 1.0


def guess_search_s(job: JobSpec, model: DeviceModel) -> float:
    """How long a search may take; one that is hopelessly slow in some settings ends sooner."""
    per_token = _bytes_per_token(job, model)
    turn = search.WARMUP_TOKENS + search.DECODE_TOKENS
    rates = [GUESS_READ * min(candidate.threads, GUESS_READ_THREADS) for candidate in job.candidates]
    rounds = search.ROUNDS * turn * sum(per_token / rate for rate in rates)
    load = model.file_bytes / max(rates) if job.engine == ENGINE else 0.0
    return GUESS_START_S + load + rounds


def _guess_brackets_s(job: JobSpec) -> float:
    if not job.bracket_ms or job.engine == FAKE:
        return 0.0
    share = 1 + GATHER_SHARE + CORE_SHARE
    if uses_storage(job.settings):
        share += STORAGE_SHARE * (1 + ONE_SHARE)
    return 2 * (GUESS_PROBE_S + share * job.bracket_ms / 1000)


def _bytes_per_token(job: JobSpec, model: DeviceModel) -> float:
    spec = job.model.synthetic
    if spec is not None:
        loaded = replace(spec, transposed_down=spec.transposed_down or job.settings.requantise_down)
        switches = job.settings
        return token_bytes(
            loaded, sparse_ffn=switches.sparse_ffn, sparse_lm_head=switches.sparse_lm_head
        ).total
    if model.sizes is None:
        return float(model.file_bytes)
    return model.sizes.weight_bytes * model.sizes.params_active / model.sizes.params
