"""The timeline of ``tools.h``: what a session did and when."""

from ctypes import Structure, c_uint32, c_uint64
from typing import Dict

TIMELINE_TOKEN = 1
TIMELINE_STEP = 10
TIMELINE_EMBED = 11
TIMELINE_NORM = 12
TIMELINE_ATTENTION = 13
TIMELINE_ROUTER = 14
TIMELINE_IO_WAIT = 15
TIMELINE_GATE = 16
TIMELINE_UP = 17
TIMELINE_GATE_UP = 18
TIMELINE_DOWN = 19
TIMELINE_LM_HEAD = 20
TIMELINE_BARRIER = 21
TIMELINE_UP_DOWN = 22
TIMELINE_READ = 30
TIMELINE_HIT = 40
TIMELINE_LOAD = 41
TIMELINE_EVICT = 42
TIMELINE_GUESS = 43

# What a person reads for a number of the header.
KINDS: Dict[int, str] = {
    TIMELINE_TOKEN: "token",
    TIMELINE_STEP: "step",
    TIMELINE_EMBED: "embed",
    TIMELINE_NORM: "norm",
    TIMELINE_ATTENTION: "attention",
    TIMELINE_ROUTER: "router",
    TIMELINE_IO_WAIT: "I/O wait",
    TIMELINE_GATE: "gate",
    TIMELINE_UP: "up",
    TIMELINE_GATE_UP: "gate+up",
    TIMELINE_DOWN: "down",
    TIMELINE_LM_HEAD: "lm_head",
    TIMELINE_BARRIER: "barrier",
    TIMELINE_UP_DOWN: "up+down",
    TIMELINE_READ: "read",
    TIMELINE_HIT: "hit",
    TIMELINE_LOAD: "load",
    TIMELINE_EVICT: "evict",
    TIMELINE_GUESS: "guess",
}


class TimelineEvent(Structure):
    """sbr_timeline_event: 0xFFFFFFFF where a member does not apply."""

    _fields_ = [
        ("begin_ns", c_uint64),
        ("end_ns", c_uint64),
        ("bytes", c_uint64),
        ("kind", c_uint32),
        ("thread", c_uint32),
        ("step", c_uint32),
        ("layer", c_uint32),
        ("unit", c_uint32),
        ("reserved", c_uint32),
    ]


class TimelineInfo(Structure):
    """sbr_timeline_info."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_threads", c_uint32),
        ("capacity", c_uint64),
        ("n_events", c_uint64),
        ("n_written", c_uint64),
        ("n_lost", c_uint64),
    ]
