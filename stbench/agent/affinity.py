"""Where threads may run and where they ran, as the kernel says: Android, and cpusets elsewhere, take a
pinning without an error and keep to another one."""

from typing import List, Optional, Tuple

from .tree import Tree, cpu_list
from .wire import Effective, Settings

# Field 39 of proc(5) stat; the first one behind the name in brackets is field 3.
_PROCESSOR = 39 - 3


def allowed_cpus(thread: int, tree: Optional[Tree] = None, pid: str = "self") -> List[int]:
    """CPUs that a thread may run on; [] when /proc is not readable."""
    fields = (tree or Tree()).fields("proc/%s/task/%d/status" % (pid, thread))
    return cpu_list(fields.get("Cpus_allowed_list", ""))


def last_cpu(thread: int, tree: Optional[Tree] = None, pid: str = "self") -> Optional[int]:
    """The CPU that a thread ran on last; None when /proc is not readable."""
    return processor((tree or Tree()).text("proc/%s/task/%d/stat" % (pid, thread)) or "")


def processor(stat: str) -> Optional[int]:
    """The same from the text of ``stat``: the name in brackets may hold anything."""
    words = stat.rpartition(")")[2].split()
    return int(words[_PROCESSOR]) if len(words) > _PROCESSOR and words[_PROCESSOR].isdigit() else None


def judged(settings: Settings, effective: Effective) -> Tuple[Optional[bool], List[str]]:
    """Whether all threads kept to the CPUs asked for, and a sentence for those that did not. None: no CPUs
    were asked for, or /proc does not say."""
    asked = set(settings.cpus)
    if not asked or not (effective.affinity or effective.last_cpus):
        return None, []
    strays = []
    for index, cpus in enumerate(effective.affinity):
        if not set(cpus) <= asked:
            strays.append("thread %d may run on %s" % (index, _said(cpus)))
    for index, cpu in enumerate(effective.last_cpus):
        if cpu not in asked:
            strays.append("thread %d ran on CPU %d" % (index, cpu))
    if strays:
        text = "pinning to CPUs %s was not kept: %s; the speed is that of other CPUs than asked for"
        return False, [text % (_said(sorted(asked)), ", ".join(strays[:8]))]
    return (True if all(effective.affinity) else None), []


def _said(cpus: List[int]) -> str:
    return ",".join(map(str, cpus))
