"""One job whose engine is a program: llama-bench or any command line. The program times itself; we pin it,
watch it and read its numbers.

It shows no logits, so the check's verdict is "unchecked". Nothing else differs from
:func:`stbench.agent.measure.measure`: parts are reported as they are known, and a program that dies by a
signal takes this process with it in the same way, so that crashes and the out-of-memory killer are told apart
in one place (:mod:`stbench.agent.supervise`).
"""

import dataclasses
import faulthandler
import hashlib
import os
import re
import shutil
import signal
import sys
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Sequence

from . import __version__, affinity, external, llama_bench, model_file, monitor, probe, process, sbr
from .loading import REPACK, lacking_for_a_copy
from .sbr import NativeError, _abi
from .wire import PROGRAM_KINDS, Check, Effective, JobSpec, Memory, MemoryAccount, Program, Samples, Versions

UNCHECKED = "the program shows no logits to check"

# What llama.cpp and programs made from it say of a file that they cannot run.
_UNSUPPORTED = re.compile(
    r"(unknown|unsupported) (model )?architecture|(invalid|unknown|unsupported) (ggml|tensor) type"
    r"|unknown pre-tokenizer type|has wrong shape",
    re.IGNORECASE,
)
_NO_MEMORY = re.compile(
    r"insufficient memory|(failed|unable) to allocate|cannot allocate memory|out of memory|std::bad_alloc",
    re.IGNORECASE,
)

# A backtrace by an attached debugger can hang for minutes.
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}


class _Numbers(NamedTuple):
    """What a kind of program tells."""

    samples: Samples
    effective: Effective
    runtime: Dict[str, Any]
    peak_rss_bytes: int
    rss_anon_bytes: Optional[int]
    rss_file_bytes: Optional[int]
    warnings: Sequence[str] = ()


def measure(job: JobSpec, report: Any) -> None:
    """Does the whole job; ``report`` is a :class:`stbench.agent.measure.Report`. Raises NativeError (with
    the status "unsupported"), MemoryError, OSError, ValueError."""
    program = job.program
    if program is None or program.kind not in PROGRAM_KINDS or not program.command:
        raise ValueError("the job names no program of a known kind (%s)" % ", ".join(PROGRAM_KINDS))
    process.end_group_with_parent()
    report.phase("start")
    isas = [isa.name for isa in sbr.load(job.library).isas() if isa.supported] if job.library else []
    work_path = job.model.path if os.path.exists(job.model.path) else "/"
    report.part("facts", probe.probe(isas=isas, work_path=work_path))
    report.part("model", model_file.with_digest(job.model))
    if _tokens(job) == 0:
        raise ValueError("the workload evaluates no tokens")
    executable = _executable(program)
    runtime = {"engine": job.engine, "program": executable}
    digest = build_digest(program, executable)
    report.part("versions", Versions(__version__, runtime, digest))

    before = _snapshot(job)
    run = _llama_bench if program.kind == "llama-bench" else _external
    numbers = run(job, program, executable, report)
    # Ends the timed phases for whoever watches.
    report.phase("results")
    report.part("telemetry", monitor.telemetry(before, _snapshot(job)))
    report.part("samples", numbers.samples)
    kept, strays = affinity.judged(job.settings, numbers.effective)
    report.part("effective", dataclasses.replace(numbers.effective, affinity_kept=kept))
    if strays:
        report.part("warnings", [*numbers.warnings, *strays])
    report.part("versions", Versions(__version__, dict(runtime, **numbers.runtime), digest))
    report.part("memory", Memory(numbers.peak_rss_bytes, numbers.rss_anon_bytes, numbers.rss_file_bytes))
    if job.settings.memory_limit_bytes:
        report.part("account", _account(job, numbers))
    report.part("check", Check("unchecked", "", 0, detail=UNCHECKED))


def _account(job: JobSpec, numbers: _Numbers) -> MemoryAccount:
    """What is known of it: the file, and the KV cache where the program says how large it is."""
    kv_bytes = numbers.effective.kv_bytes
    size = os.path.getsize(job.model.path) if os.path.isfile(job.model.path) else 0
    return MemoryAccount(size, 0, kv_bytes, kv_bytes, 0, 0)


def _snapshot(job: JobSpec) -> monitor.Snapshot:
    """The sensors, with the CPU times of those CPUs that the program may use."""
    allowed = os.sched_getaffinity(0)
    if job.settings.cpus and set(_cpus(job)) <= allowed:
        os.sched_setaffinity(0, _cpus(job))
    try:
        return monitor.snapshot()
    finally:
        os.sched_setaffinity(0, allowed)


def _tokens(job: JobSpec) -> int:
    workload = job.workload
    if min(workload.n_prompt, workload.n_gen, workload.n_depth) < 0:
        raise ValueError("the workload has a negative number of tokens")
    return workload.n_prompt + workload.n_gen


def _executable(program: Program) -> str:
    name = program.command[0]
    path = program.environment.get("PATH", os.environ.get("PATH", os.defpath))
    found = shutil.which(name, path=path)
    if found is None:
        advice = "`stbench peer build` builds llama.cpp" if program.kind == "llama-bench" else "install it"
        raise OSError("%s: no such program; %s, or correct its path in devices.yaml" % (name, advice))
    return found


def build_digest(program: Program, executable: str) -> str:
    """SHA-256 over a program's file and, of llama-bench, the shared libraries that lie beside it: its own
    file does nothing but call them. "" when a file cannot be read."""
    files = [os.path.realpath(executable)]
    if program.kind == "llama-bench":
        folder = os.path.dirname(files[0])
        libraries = {os.path.realpath(os.path.join(folder, n)) for n in os.listdir(folder) if ".so" in n}
        files += sorted(libraries)
    state = hashlib.sha256()
    try:
        for path in files:
            with open(path, "rb") as file:
                state.update(hashlib.sha256(file.read()).digest())
    except OSError:
        return ""
    return state.hexdigest()


def _threads(job: JobSpec) -> int:
    return job.settings.threads or len(job.settings.cpus) or len(os.sched_getaffinity(0))


def _cpus(job: JobSpec) -> List[int]:
    """Thread i runs on the i-th CPU, as in our own engine, so the others are not used."""
    return list(job.settings.cpus[: _threads(job)])


# ---- llama-bench -------------------------------------------------------------------------------------


def _llama_bench(job: JobSpec, program: Program, executable: str, report: Any) -> _Numbers:
    workload, settings, threads, cpus = job.workload, job.settings, _threads(job), _cpus(job)
    environment = dict(_ENVIRONMENT, **program.environment)
    told = process.run([executable, "--help"], environment, is_noise=_all)
    known = llama_bench.flags(told.stdout + told.stderr)
    built = process.run([executable, "--version"], environment, is_noise=_all)
    warnings = _reasons_against_copies(job, program)
    report.part("warnings", warnings)
    results: List[Dict[str, Any]] = []
    commands: List[List[str]] = []
    runs: List[process.Finished] = []
    for test in llama_bench.tests(workload.n_prompt, workload.n_gen, workload.n_depth):
        report.phase("llama-bench %s" % test.label)
        try:
            words = llama_bench.arguments(
                known, job.model.path, threads, cpus, settings, test, bool(warnings)
            )
        except llama_bench.ResultError as error:
            raise NativeError(_abi.ERR_UNSUPPORTED, str(error)) from error
        command = [executable, *words, *program.command[1:]]
        done = process.run(command, environment, cpus, llama_bench.is_noise)
        _require_success(done, done.last_lines(llama_bench.is_noise))
        try:
            results.append(llama_bench.result(done.stdout, test))
        except llama_bench.ResultError as error:
            last = done.last_lines(llama_bench.is_noise)
            raise ValueError("%s; last lines: %s" % (error, last)) from error
        commands.append(command)
        runs.append(done)
    joined = _joined(job, results, runs, {"version": _said(built), "commands": commands})
    return joined._replace(warnings=warnings)


def _reasons_against_copies(job: JobSpec, program: Program) -> List[str]:
    """Why llama.cpp must not repack: under the job's memory limit the copies would get it killed. Empty: it
    may. The user's own ``--repack`` in devices.yaml is left alone."""
    limit = job.settings.memory_limit_bytes
    if not limit or job.settings.load == REPACK or llama_bench.REPACK_FLAG in program.command:
        return []
    lacking = lacking_for_a_copy(job.model.path, limit_bytes=limit)
    return ["llama.cpp does not repack (--repack 0), because " + lacking] if lacking else []


def _all(_line: str) -> bool:
    return True


def _said(done: process.Finished) -> str:
    text = " ".join((done.stderr + done.stdout).split())
    return text[:300] if done.returncode == 0 else ""


def _joined(
    job: JobSpec, results: List[Dict[str, Any]], runs: List[process.Finished], runtime: Dict[str, Any]
) -> _Numbers:
    prompts = [item for item in results if item["n_prompt"]]
    generations = [item for item in results if item["n_gen"]]
    samples = Samples(
        ttft_ns=0,
        prefill_ns=[ns for item in prompts for ns in item["samples_ns"]],
        prefill_tokens=[item["n_prompt"] for item in prompts],
        decode_ns=[ns for item in generations for ns in item["samples_ns"]],
        decode_tokens=[item["n_gen"] for item in generations],
    )
    last, run = results[-1], runs[-1]
    log = llama_bench.read_log(run.stderr)
    threads = llama_bench.whole_number(last, "n_threads")
    kv_type = last.get("type_k")
    effective = Effective(
        threads=threads,
        # Helpers that load or poll take CPU time, too: the busiest ones are those that compute.
        affinity=run.affinity[:threads] if threads else run.affinity,
        last_cpus=run.last_cpus[:threads] if threads else run.last_cpus,
        isa="",
        n_ctx=log.n_ctx,
        n_batch=llama_bench.whole_number(last, "n_ubatch"),
        kv_type=kv_type if isinstance(kv_type, str) else "",
        kv_bytes=log.kv_bytes,
        scratch_bytes=0,
        sparse_ffn="off",
        sparse_lm_head=False,
        down_layout="",
        load=llama_bench.load_mode(last),
        weights_repacked=log.repacked,
    )
    names = ("build_commit", "build_number", "backends", "cpu_info", "model_type", "flash_attn", "n_batch")
    runtime = dict({name: last[name] for name in names if _is_plain(last.get(name))}, **runtime)
    largest = max(runs, key=lambda one: one.peak_rss_bytes)
    return _Numbers(
        samples, effective, runtime, largest.peak_rss_bytes, largest.rss_anon_bytes, largest.rss_file_bytes
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, bool, int))


# ---- any command -------------------------------------------------------------------------------------


def _external(job: JobSpec, program: Program, executable: str, report: Any) -> _Numbers:
    workload, settings, threads, cpus = job.workload, job.settings, _threads(job), _cpus(job)
    if workload.n_gen and program.decode is None:
        raise NativeError(_abi.ERR_UNSUPPORTED, "%s has no decode: reading" % job.engine)
    if not workload.n_gen and program.prefill is None:
        raise NativeError(_abi.ERR_UNSUPPORTED, "%s has no prefill: reading" % job.engine)
    values = {
        "model": job.model.path,
        "threads": str(threads),
        "cpus": ",".join(map(str, cpus or sorted(os.sched_getaffinity(0)))),
        "n_prompt": str(workload.n_prompt),
        "n_gen": str(workload.n_gen),
        "n_depth": str(workload.n_depth),
        "n_ctx": str(settings.n_ctx),
        "n_batch": str(settings.n_batch),
        "seed": str(workload.seed),
    }
    command = [executable, *external.fill(program.command[1:], values)]
    report.phase("external program")
    done = process.run(command, dict(_ENVIRONMENT, **program.environment), cpus)
    _require_success(done, done.last_lines())
    samples = Samples(
        ttft_ns=0,
        prefill_ns=_durations(workload.n_prompt, program.prefill, done),
        prefill_tokens=[workload.n_prompt] if workload.n_prompt and program.prefill else [],
        decode_ns=_durations(workload.n_gen, program.decode, done),
        decode_tokens=[workload.n_gen] if workload.n_gen else [],
    )
    passed = external.placeholders(program.command)
    effective = Effective(
        threads=threads if "threads" in passed else 0,
        affinity=done.affinity,
        last_cpus=done.last_cpus,
        isa="",
        n_ctx=settings.n_ctx if "n_ctx" in passed else 0,
        n_batch=settings.n_batch if "n_batch" in passed else 0,
        kv_type="",
        kv_bytes=0,
        scratch_bytes=0,
        sparse_ffn="",
        sparse_lm_head=False,
        down_layout="",
        load="",
    )
    runtime = {"command": command, "wall_s": round(done.wall_s, 3)}
    return _Numbers(
        samples, effective, runtime, done.peak_rss_bytes, done.rss_anon_bytes, done.rss_file_bytes
    )


def _durations(count: int, reading: Any, done: process.Finished) -> List[int]:
    """``count`` tokens at the speed that the program printed, as one duration: the program's own rounding of
    its number is in it."""
    if not count or reading is None:
        return []
    try:
        tokens_per_s = external.read(reading, done.stdout, done.stderr)
    except external.NoNumber as error:
        raise ValueError("%s in the output; last lines: %s" % (error, done.last_lines())) from error
    ns = round(count / tokens_per_s * 1e9)
    if not 1 <= ns < 1e18:
        raise ValueError(
            "%s gives %g tokens/s, which is no speed" % (external.described(reading), tokens_per_s)
        )
    return [ns]


# ---- endings -----------------------------------------------------------------------------------------


def _require_success(done: process.Finished, last_lines: str) -> None:
    """Raises what a bad ending means, or dies as the program did."""
    if done.returncode == 0:
        return
    text = done.stderr + "\n" + done.stdout
    for pattern, kind in ((_NO_MEMORY, "memory"), (_UNSUPPORTED, "unsupported")):
        lines = [line.strip() for line in text.splitlines() if pattern.search(line)]
        if lines and kind == "memory":
            raise MemoryError(lines[-1][:300])
        if lines:
            raise NativeError(_abi.ERR_UNSUPPORTED, lines[-1][:300])
    if done.returncode < 0:
        _die_by(-done.returncode)
    raise ValueError("the program ended with exit code %d; last lines: %s" % (done.returncode, last_lines))


def _die_by(number: int) -> NoReturn:
    """Ends this process by the signal that ended its program."""
    sys.stderr.flush()
    faulthandler.disable()
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # A signal that ends nobody did not end the program either.
    raise ValueError("the program was ended by signal %d" % number)
