"""``-t auto`` on the device: the race, its winner, and what the record says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import search, wire
from stbench.agent.fake import FakeEngine
from stbench.agent.probe import probe
from stbench.agent.sbr import NativeError
from stbench.agent.tree import Tree
from stbench.agent.wire import Candidate, DeviceFacts, JobSpec, ThreadSearch
from stbench.agent.wiresearch import TriedCandidate
from stbench.sweeps.candidates import MOST, candidates
from tests.agent.conftest import TREES, fake_job, run_job

BIG_LITTLE = [
    Candidate("4 x big", 4, [4, 5, 6, 7]),
    Candidate("4 x big + 4 x little", 8, [4, 5, 6, 7, 0, 1, 2, 3]),
    Candidate("2 x big", 2, [4, 5]),
    Candidate("1 x big", 1, [4]),
]


class Parts:
    """A report that keeps the parts."""

    def __init__(self) -> None:
        self.parts: dict[str, object] = {}

    def phase(self, name: str) -> None:
        pass

    def part(self, name: str, value: object) -> None:
        self.parts[name] = value


def race(options: str, tried: Sequence[Candidate] = BIG_LITTLE) -> ThreadSearch:
    """The search of the fake engine."""
    parts = Parts()
    job = fake_job(options, purpose="search", candidates=list(tried))
    search.run(job, FakeEngine(), parts, lambda count, n_vocab: list(range(count)))
    found = parts.parts["search"]
    assert isinstance(found, ThreadSearch)
    assert wire.loads(ThreadSearch, wire.dumps(found)) == found
    return found


def tried(*times: tuple[int, int]) -> list[TriedCandidate]:
    """Candidates of (threads, ns)."""
    return [TriedCandidate(Candidate(f"{n} x CPU", n), [[ns]], ns) for n, ns in times]


# ---- who wins ----------------------------------------------------------------------------------------


def test_little_cores_that_slow_all_down_are_left_alone() -> None:
    found = race("scale=8,slow=4")
    assert found.tried[found.chosen].candidate.cpus == [4, 5, 6, 7]
    assert found.why.startswith("4 threads on CPUs 4,5,6,7 (4 x big) at 0.2")
    others = found.why.split("the fastest; tried, too: ")[1]
    assert others.startswith("8 threads on CPUs 4,5,6,7,0,1,2,3 (4 x big + 4 x little) at 0.64")


def test_all_cpus_are_taken_where_they_help() -> None:
    assert race("scale=8").chosen == 1


def test_threads_beyond_what_memory_feeds_are_not_taken() -> None:
    found = race("scale=2")
    assert found.tried[found.chosen].candidate.threads == 2


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ([(8, 1000), (4, 1029), (1, 4000)], 1),
        ([(8, 1000), (4, 1031), (1, 4000)], 0),
        ([(8, 1000), (4, 1020), (2, 1025), (1, 1040)], 2),
        ([(4, 1010), (4, 1000)], 1),
        ([(2, 1000), (8, 990)], 0),
        ([(2, 1000)], 0),
    ],
)
def test_within_three_per_cent_fewer_threads_win(times: list[tuple[int, int]], chosen: int) -> None:
    found = search.choose(tried(*times))
    assert found.chosen == chosen
    fastest = min(ns for _, ns in times)
    assert ("fewer threads" in found.why) == (times[chosen][1] > fastest)


def test_nothing_measured_is_no_choice() -> None:
    with pytest.raises(ValueError, match="no candidate was measured"):
        search.choose(tried((2, 0)))


# ---- the race ----------------------------------------------------------------------------------------


def test_candidates_take_turns_and_hopeless_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    use = FakeEngine.use_threads

    def watched(self: FakeEngine, threads: int, cpus: Sequence[int]) -> None:
        turns.append(threads)
        use(self, threads, cpus)

    monkeypatch.setattr(FakeEngine, "use_threads", watched)
    found = race("scale=1")
    assert [len(one.rounds_ns) for one in found.tried] == [5, 5, 5, 5]
    assert turns[:8] == [4, 8, 2, 1, 1, 2, 8, 4], "there and back"
    turns.clear()
    found = race("scale=8,slow=4")
    assert [len(one.rounds_ns) for one in found.tried] == [5, 2, 2, 2]
    assert all(len(times) == search.DECODE_TOKENS for one in found.tried for times in one.rounds_ns)


def test_a_search_is_short_on_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10000, 70))
    monkeypatch.setattr(search.time, "monotonic", lambda: next(clock))
    assert [len(one.rounds_ns) for one in race("scale=1").tried] == [2, 2, 2, 2]


def test_a_candidate_that_cannot_run_is_said_and_passed_over() -> None:
    found = race("scale=8,absent=3")
    assert found.tried[1].median_ns == 0
    assert "CPU 3" in found.tried[1].detail
    assert found.chosen == 0
    assert "failed (" in found.why
    with pytest.raises(NativeError):
        race("absent=4")


def test_no_candidates_is_an_error() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        race("", [])


# ---- as a job ----------------------------------------------------------------------------------------


def test_the_record_of_a_search() -> None:
    record = run_job(fake_job("scale=8,slow=4", purpose="search", candidates=BIG_LITTLE, bracket_ms=200))
    assert (record.status, record.purpose, record.detail) == ("ok", "search", "")
    assert record.search is not None
    assert [one.candidate for one in record.search.tried] == BIG_LITTLE
    assert record.search.chosen == 0
    assert record.samples is None
    assert record.bracket is None
    assert record.facts is not None
    assert run_job(fake_job("crash", purpose="search", candidates=BIG_LITTLE)).status == "crashed"


def test_a_choice_stays_with_the_record() -> None:
    choice = wire.ThreadChoice("id", "because")
    assert run_job(fake_job(choice=choice)).choice == choice
    assert run_job(fake_job("exit", choice=choice)).choice == choice


def test_the_real_engine_on_this_machine(sbr_job: Callable[..., JobSpec]) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    wanted = [
        Candidate("unpinned", len(allowed)),
        Candidate("one", 1, allowed[-1:]),
        Candidate("all", len(allowed), allowed),
        Candidate("absent", 1, [4095]),
    ]
    record = run_job(replace(sbr_job(), purpose="search", candidates=wanted))
    assert record.status == "ok", record.detail
    assert record.search is not None
    *good, bad = record.search.tried
    assert all(one.median_ns > 0 and not one.detail for one in good)
    assert bad.median_ns == 0
    assert "4095" in bad.detail
    assert record.search.chosen < 3
    assert record.shape is not None


def test_the_candidates_of_this_machine_run(sbr_job: Callable[..., JobSpec]) -> None:
    wanted = candidates(probe())
    record = run_job(replace(sbr_job(), purpose="search", candidates=wanted))
    assert record.status == "ok", record.detail
    assert record.search is not None
    assert not [one.detail for one in record.search.tried if one.detail]


# ---- what is tried -----------------------------------------------------------------------------------


def i9_14900(root: Path, cpufreq: bool = True) -> DeviceFacts:
    """8 P-cores of two hardware threads, two of them favoured, and 16 E-cores."""
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    (cpus / "online").write_text("0-31\n")
    for kind, text in (("core", "0-15"), ("atom", "16-31")):
        folder = root / f"sys/devices/cpu_{kind}"
        folder.mkdir()
        (folder / "cpus").write_text(text + "\n")
    for cpu in range(32):
        folder = cpus / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        pair = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" if cpu < 16 else str(cpu)
        (folder / "topology" / "core_cpus_list").write_text(pair + "\n")
        if cpufreq:
            (folder / "cpufreq").mkdir()
            khz = 4300000 if cpu >= 16 else 5800000 if 8 <= cpu < 12 else 5400000
            (folder / "cpufreq" / "cpuinfo_max_freq").write_text(f"{khz}\n")
    (root / "proc").mkdir()
    name = "model name\t: Intel(R) Core(TM) i9-14900"
    (root / "proc/cpuinfo").write_text("\n\n".join(f"processor\t: {n}\n{name}" for n in range(32)) + "\n")
    return probe(Tree(root))


def shown(facts: DeviceFacts, *cpus: int) -> list[tuple[str, int, list[int]]]:
    return [(one.name, one.threads, one.cpus) for one in candidates(facts, cpus)]


def test_an_rk3588_has_little_and_big_cores() -> None:
    facts = probe(Tree(TREES / "rk3588"))
    assert shown(facts) == [
        ("4 x Cortex-A76", 4, [6, 7, 4, 5]),
        ("4 x Cortex-A76 + 4 x Cortex-A55", 8, [6, 7, 4, 5, 0, 1, 2, 3]),
        ("2 x Cortex-A76", 2, [6, 7]),
        ("1 x Cortex-A76", 1, [6]),
        ("4 x Cortex-A55", 4, [0, 1, 2, 3]),
    ]


@pytest.mark.parametrize("cpufreq", [True, False])
def test_an_i9_has_p_and_e_cores(tmp_path: Path, cpufreq: bool) -> None:
    facts = i9_14900(tmp_path, cpufreq)
    assert {cluster.kind for cluster in facts.clusters} == {"core", "atom"}
    p_cores = [8, 10, 0, 2, 4, 6, 12, 14] if cpufreq else list(range(0, 16, 2))
    p_cpus = [8, 9, 10, 11, *range(8), *range(12, 16)] if cpufreq else list(range(16))
    e_cores = list(range(16, 32))
    assert shown(facts) == [
        ("8 x P-core", 8, p_cores),
        ("8 x P-core + 16 x E-core", 24, p_cores + e_cores),
        ("P-cores with all hardware threads", 16, p_cpus),
        ("all hardware threads", 32, p_cpus + e_cores),
        ("4 x P-core", 4, p_cores[:4]),
        ("1 x P-core", 1, p_cores[:1]),
        ("16 x E-core", 16, e_cores),
    ]


def test_a_machine_without_cpufreq_has_counts() -> None:
    facts = probe(Tree(TREES / "x86-vm"))
    assert shown(facts) == [("2 x AMD EPYC", 2, []), ("1 x AMD EPYC", 1, [])]
    assert shown(facts, 1) == [("1 x AMD EPYC", 1, [1])]


def test_only_cpus_of_the_device_are_tried() -> None:
    facts = probe(Tree(TREES / "rk3588"))
    assert shown(facts, 4, 5) == [("2 x Cortex-A76", 2, [4, 5]), ("1 x Cortex-A76", 1, [4])]
    inside = replace(facts, allowed_cpus=[0, 1, 7])
    assert {cpu for _, _, cpus in shown(inside) for cpu in cpus} == {0, 1, 7}


def test_four_kinds_of_cores_stay_within_the_bound(tmp_path: Path) -> None:
    phone = probe(Tree(Path(shutil.copytree(TREES / "android", tmp_path / "phone"))))
    assert len(phone.clusters) == 4
    # Android refuses frequencies: told apart by model only, so that any of them may be the fastest.
    found = candidates(phone)
    assert len(found) == MOST
    assert len({tuple(sorted(one.cpus)) for one in found}) == MOST
    assert 8 in {one.threads for one in found}


def test_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    assert shown(probe(Tree(tmp_path))) == [("1 x CPU", 1, [])]
