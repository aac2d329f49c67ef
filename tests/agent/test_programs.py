"""Programs as engines, through the real agent: what is passed, what is read, how every ending is told, and
that nothing survives it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import wire
from stbench.agent.wire import JobSpec, ModelRef, Program, Reading, RunRecord, Settings, Workload
from tests.agent.conftest import fake_job, run_job, start_agent

# A llama-bench that does what BENCH says. Its times are the numbers of tokens in microseconds.
BENCH = """\
#!/bin/sh
case "$1" in
--help) printf '  %s <x>\\n' '-v, --verbose' '-d, --n-depth' '-lm, --load-mode' '-C, --cpu-mask' '--repack'
  exit ;;
--version) echo "version: 7 (fake)" >&2; exit ;;
esac
echo "$0 $*" >>"$(dirname "$0")/calls"
echo "load_tensors: CPU_REPACK model buffer size = 1.00 MiB" >&2
echo "create_tensor: one of thousands" >&2
depth=0
while [ $# -gt 0 ]; do
  case "$1" in -p) p=$2 ;; -n) n=$2 ;; -d) depth=$2 ;; -t) t=$2 ;; esac
  shift
done
echo "not JSON {"
{
eval "$BENCH"
}
printf '{"n_prompt": %s, "n_gen": %s, "n_depth": %s, "samples_ns": [%s000], "n_threads": %s, "new": []}\\n' \\
  "$p" "$n" "$depth" "$((p + n))" "$t"
echo "and a last line"
"""


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., JobSpec]:
    """Makes jobs for a fake llama-bench that first runs the given shell commands."""
    path = tmp_path / "llama-bench"
    path.write_text(BENCH)
    path.chmod(0o755)

    def make(does: str = "", **changes: Any) -> JobSpec:
        program = Program("llama-bench", [str(path), "-fa", "on"], {"BENCH": does})
        return fake_job(
            **{"engine": "llama-bench", "program": program, "model": ModelRef("m", "/m"), **changes}
        )

    return make


def command_job(*command: str, **changes: Any) -> JobSpec:
    """A job of an external program whose decode speed is behind "speed"."""
    program = Program("external", list(command), decode=Reading(regex=r"speed (\S+)"))
    values: dict[str, Any] = {"workload": Workload(0, 20), "model": ModelRef("m", "/m")}
    return fake_job(**{"engine": "mine", "program": program, **values, **changes})


def shell(script: str, **changes: Any) -> JobSpec:
    return command_job("sh", "-c", script, "sh", "{model}", **changes)


# ---- what is passed and read ---------------------------------------------------------------------------


def test_prompt_and_generation_are_two_runs_of_llama_bench(
    bench: Callable[..., JobSpec], tmp_path: Path
) -> None:
    cpu = min(os.sched_getaffinity(0))
    settings = Settings(threads=1, cpus=[cpu], n_ctx=256)
    record = run_job(bench(workload=Workload(8, 20, 100), settings=settings))
    assert (record.status, record.detail) == ("ok", "")
    calls = [line.split(" ", 1)[1] for line in (tmp_path / "calls").read_text().splitlines()]
    tail = f"-lm mmap -C {1 << cpu:#x} --cpu-strict 1 -fa on"
    assert calls == [
        f"-m /m -t 1 -p 8 -n 0 -r 1 -o jsonl -ctk f16 -ctv f16 -v -d 100 {tail}",
        f"-m /m -t 1 -p 0 -n 20 -r 1 -o jsonl -ctk f16 -ctv f16 -v -d 108 {tail}",
    ]
    samples, effective = record.samples, record.effective
    assert samples is not None
    assert (samples.prefill_ns, samples.prefill_tokens) == ([8000], [8])
    assert (samples.decode_ns, samples.decode_tokens, samples.ttft_ns) == ([20000], [20], 0)
    assert effective is not None
    assert (effective.threads, effective.weights_repacked) == (1, True)
    assert all(cpus == [cpu] for cpus in effective.affinity)
    assert record.check is not None
    assert (record.check.verdict, record.check.detail) == (
        "unchecked",
        "the program shows no logits to check",
    )
    assert record.program is not None
    assert record.versions is not None
    assert len(record.versions.library_sha256) == 64
    assert record.versions.runtime["version"] == "version: 7 (fake)"


@pytest.mark.parametrize(
    ("limit", "added", "copied"),
    [(256 << 20, "", False), (1 << 30, "", True), (256 << 20, "--repack 1", True)],
)
def test_llama_bench_repacks_only_what_fits_under_the_limit(
    bench: Callable[..., JobSpec], tmp_path: Path, limit: int, added: str, copied: bool
) -> None:
    """A copy that does not fit gets it killed, which says nothing about mapped weights."""
    model = tmp_path / "model.gguf"
    with model.open("wb") as file:
        file.truncate(64 << 20)
    job = bench(
        model=ModelRef("m", str(model)),
        workload=Workload(8, 0),
        settings=Settings(threads=1, memory_limit_bytes=limit),
    )
    if added:
        assert job.program is not None
        job.program.command.extend(added.split())
    record = run_job(job)
    assert record.status == "ok", record.detail
    assert ("--repack 0" in (tmp_path / "calls").read_text()) == (not copied)
    assert any("--repack 0" in warning for warning in record.warnings) == (not copied)


def test_a_command_is_filled_in_pinned_and_read() -> None:
    cpu = max(os.sched_getaffinity(0))
    script = (
        "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; "
        "echo {threads} {n_gen} {n_depth} ${{0%.x}}; "
        "echo speed 99; echo speed $SPEED"
    )
    job = shell(script, settings=Settings(threads=1, cpus=[cpu], n_ctx=256))
    assert job.program is not None
    job.program.environment["SPEED"] = "4"
    record = run_job(job)
    assert record.status == "ok", record.detail
    assert record.samples is not None
    assert (record.samples.decode_ns, record.samples.decode_tokens) == ([5_000_000_000], [20])
    assert record.samples.prefill_ns == []
    assert record.effective is not None
    assert record.effective.affinity == [[cpu]]
    assert record.effective.threads == 1
    assert record.versions is not None
    assert "; echo 1 20 0 ${0%.x}; " in record.versions.runtime["command"][2]


def test_peak_memory_is_the_programs_own(tmp_path: Path) -> None:
    """Not that of the Python process that starts it, and also of a child behind a shell."""
    small = run_job(shell("echo speed 1"))
    grab = f"{sys.executable} -c 'x = bytearray(300 << 20); x[::4096] = bytes(len(x[::4096]))'; echo speed 1"
    large = run_job(shell(grab))
    assert small.memory is not None
    assert large.memory is not None
    assert small.memory.peak_rss_bytes < 16 << 20
    assert 300 << 20 < large.memory.peak_rss_bytes < 400 << 20


# ---- endings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "status", "said"),
    [
        ("echo \"unknown model architecture: 'x'\" >&2; exit 1", "unsupported", "unknown model architecture"),
        ("echo \"tensor 't' has invalid ggml type 99\" >&2; exit 1", "unsupported", "invalid ggml type 99"),
        ("echo \"unknown pre-tokenizer type: 'x'\" >&2; exit 1", "unsupported", "unknown pre-tokenizer type"),
        ("echo \"tensor 'd' has wrong shape; expected 1\" >&2; exit 1", "unsupported", "wrong shape"),
        ("echo 'unable to allocate CPU_REPACK buffer' >&2; exit 1", "out-of-memory", "unable to allocate"),
        ('echo "what():  std::bad_alloc" >&2; kill -ABRT $$', "out-of-memory", "std::bad_alloc"),
        ("kill -SEGV $$", "crashed", "killed by SIGSEGV during llama-bench pp8"),
        ("echo last words >&2; kill -BUS $$", "crashed", "last words"),
        ("kill -KILL $$", "crashed", "killed by SIGKILL during llama-bench pp8"),
        ("echo it broke >&2; exit 7", "failed", "exit code 7; last lines: load_tensors"),
        ("echo it broke >&2; exit 7", "failed", "it broke"),
        ("exit 0", "failed", "llama-bench printed no result; last lines: "),
        ('echo \'{"n_prompt": 8, "n_gen": 0}\'; exit 0', "failed", "a result without samples_ns"),
        ("p=9", "failed", "no result of pp8"),
    ],
)
def test_every_ending_of_llama_bench_has_a_status(
    bench: Callable[..., JobSpec], does: str, status: str, said: str
) -> None:
    record = run_job(bench(does))
    assert (record.status, said in record.detail) == (status, True), record.detail
    assert record.samples is None
    assert "one of thousands" not in record.detail


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo nothing of use",
            'no number for the regex "speed (\\S+)" in the output; last lines: nothing of use',
        ),
        ("echo speed 0", "which is no speed"),
        ("echo speed nan", "which is no speed"),
        ("echo speed 1e-30", "which is no speed"),
        ("exit 3", "the program ended with exit code 3"),
    ],
)
def test_a_command_without_a_speed_says_what_was_looked_for(script: str, said: str) -> None:
    record = run_job(shell(script))
    assert record.status == "failed"
    assert said in record.detail


def test_a_missing_program_says_what_to_do(bench: Callable[..., JobSpec]) -> None:
    job = bench(program=Program("llama-bench", ["/nowhere/llama-bench"]))
    record = run_job(job)
    assert record.status == "failed"
    assert "/nowhere/llama-bench: no such program; `stbench peer build` builds llama.cpp" in record.detail
    record = run_job(command_job("no-such-program-here", "{model}"))
    assert "no-such-program-here: no such program" in record.detail


def test_what_a_command_cannot_tell_is_unsupported() -> None:
    record = run_job(shell("echo speed 1", workload=Workload(8, 0)))
    assert (record.status, record.detail) == ("unsupported", "mine has no prefill: reading")


def test_cpus_that_are_not_ours_are_named() -> None:
    record = run_job(shell("echo speed 1", settings=Settings(threads=1, cpus=[4000], n_ctx=256)))
    assert record.status == "failed"
    assert "CPUs 4000 are not ours to run on" in record.detail


# ---- nothing survives ----------------------------------------------------------------------------------


@pytest.fixture
def marker() -> Iterator[str]:
    """Seconds to sleep that no other process sleeps."""
    text = f"7{os.getpid()}.{time.monotonic_ns() % 10**6:06}"
    yield text
    for pid in alive(text):
        os.kill(pid, signal.SIGKILL)


def alive(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if text.encode() in words:
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "did not happen within a minute"
        time.sleep(0.02)


def test_a_timeout_ends_the_program_and_its_children(marker: str) -> None:
    record = run_job(shell(f"sleep {marker} & sleep {marker}", timeout_s=5.0))
    assert record.status == "timeout"
    assert "during external program" in record.detail
    wait_for(lambda: not alive(marker))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_agent_takes_the_program_and_its_children_with_it(marker: str, number: int) -> None:
    agent = start_agent("run")
    assert agent.stdin is not None
    agent.stdin.write(wire.dumps(shell(f"sleep {marker} & sleep {marker}")) + "\n")
    agent.stdin.close()
    wait_for(lambda: len(alive(marker)) == 2)
    agent.send_signal(number)
    agent.wait()
    wait_for(lambda: not alive(marker))
    if number == signal.SIGTERM:
        assert agent.stdout is not None
        assert wire.loads(RunRecord, agent.stdout.read()).status == "cancelled"


def test_a_child_that_keeps_the_output_open_does_not_hold_the_record(marker: str) -> None:
    begin = time.monotonic()
    record = run_job(shell(f"sleep {marker} & echo speed 2"))
    assert record.status == "ok", record.detail
    assert time.monotonic() - begin < 30
    wait_for(lambda: not alive(marker))


def test_a_flood_of_output_is_cut_at_its_beginning() -> None:
    flood = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); printf '%01000d\\n' 0; done"
    record = run_job(shell(f"for j in 1 2 3 4 5 6 7 8 9 10 11 12; do {flood}; done; echo speed 5"))
    assert record.status == "ok", record.detail
    assert json.dumps(wire.to_json(record)).count("0" * 500) == 0
