"""One entry of devices.yaml as written: which keys there are and what each may hold."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic

from stbench.devices.host_ranges import RANGE
from stbench.models import hub

# Names go into labels (`rpi5:smallthinker-4b/...`), file names and globs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?"
_HOST = r"(?:[A-Za-z0-9_][A-Za-z0-9._%:-]{0,252}|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]+)?\])"
_HOP = re.compile(rf"(?:{USER}@)?(?:[A-Za-z0-9_][A-Za-z0-9._%-]{{0,252}}|\[[0-9A-Fa-f:.%]+\])(?::\d{{1,5}})?")


def _threads(value: Any) -> Any:
    if value in ("all", "auto"):
        return value
    items = value if isinstance(value, list) else [value]
    if items and all(type(n) is int and 1 <= n <= 1024 for n in items):
        return items
    raise ValueError("a thread count, a list of them, all or auto")


def _cpus(value: Any) -> Any:
    """CPU numbers as a list or in the kernel's notation: ``0-3,8``."""
    if isinstance(value, list) and value and all(type(n) is int and 0 <= n < 4096 for n in value):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", value):
        cpus: list[int] = []
        for part in value.split(","):
            low, _, high = part.partition("-")
            first, last = int(low), int(high or low)
            if not first <= last < 4096:
                break
            cpus.extend(range(first, last + 1))
        else:
            if len(set(cpus)) == len(cpus):
                return cpus
    raise ValueError('CPU numbers from 0 to 4095, such as [4, 5, 6, 7] or "4-7"')


def _host(value: Any) -> Any:
    """A name or an address, with or without brackets around IPv6; a range stands for its numbers."""
    if isinstance(value, str) and re.fullmatch(_HOST, RANGE.sub("0", value)):
        return value[1:-1] if value.startswith("[") and value.endswith("]") and "::" in value else value
    raise ValueError("a host name or address")


def _user(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(USER, value):
        return value
    raise ValueError("a user name")


def _alias(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(
        r"[A-Za-z0-9_][A-Za-z0-9._%@:-]{0,252}", RANGE.sub("0", value)
    ):
        return value
    raise ValueError("a Host of ~/.ssh/config")


def _proxy_jump(value: Any) -> Any:
    if isinstance(value, str) and value and all(_HOP.fullmatch(hop.strip()) for hop in value.split(",")):
        return ",".join(hop.strip() for hop in value.split(","))
    raise ValueError("hosts to go through in their order, such as me@gateway:22,inner")


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("/", "~/")) and "\0" not in value:
        return value
    raise ValueError("an absolute path, or one that begins with ~/")


def _model(value: Any) -> Any:
    if isinstance(value, str) and hub.is_reference(value):
        if problem := hub.problem_of(value):
            raise ValueError(problem.removeprefix("expected "))
        return value
    return _absolute(value)


def _line(value: Any) -> Any:
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value
    raise ValueError("a command as one line of text")


def _schema(**schema: Any) -> pydantic.WithJsonSchema:
    return pydantic.WithJsonSchema(schema)


_COUNT = {"type": "integer", "minimum": 1, "maximum": 1024}
_CPU = {"type": "integer", "minimum": 0, "maximum": 4095}
Threads = Annotated[
    list[int] | Literal["all", "auto"],
    pydantic.BeforeValidator(_threads),
    _schema(anyOf=[_COUNT, {"type": "array", "items": _COUNT, "minItems": 1}, {"enum": ["all", "auto"]}]),
]
Cpus = Annotated[
    list[int],
    pydantic.BeforeValidator(_cpus),
    _schema(
        anyOf=[
            {"type": "array", "items": _CPU, "minItems": 1},
            {"type": "string", "pattern": r"^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$"},
        ]
    ),
]
Host = Annotated[str, pydantic.BeforeValidator(_host), _schema(type="string", minLength=1)]
User = Annotated[str, pydantic.BeforeValidator(_user), _schema(type="string", pattern=f"^{USER}$")]
Alias = Annotated[str, pydantic.BeforeValidator(_alias), _schema(type="string", minLength=1)]
ProxyJump = Annotated[str, pydantic.BeforeValidator(_proxy_jump), _schema(type="string", minLength=1)]
AbsolutePath = Annotated[str, pydantic.BeforeValidator(_absolute), _schema(type="string", pattern="^(/|~/)")]
ModelPlace = Annotated[str, pydantic.BeforeValidator(_model), _schema(type="string", pattern="^(/|~/|hf:)")]
CommandLine = Annotated[str, pydantic.BeforeValidator(_line), _schema(type="string", minLength=1)]
Seconds = Annotated[float, pydantic.Field(gt=0, le=86400)]


class Timeouts(pydantic.BaseModel):
    """How long to wait for a device, seconds."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    connect: Seconds | None = pydantic.Field(None, description="for a connection to stand (15)")
    silence: Seconds | None = pydantic.Field(
        None, description="without a sign of life: the link is lost (20)"
    )
    reconnect: Annotated[float, pydantic.Field(ge=0, le=86400)] | None = pydantic.Field(
        None, description="for a lost link to come back (300)"
    )
    run: Seconds | None = pydantic.Field(None, description="for one run (600)")


def _percent(value: Any) -> Any:
    """YAML 1.1 reads a bare off as false."""
    if value is False or value == "off":
        return 0.0
    if type(value) in (int, float) and 0 < value <= 100:
        return float(value)
    raise ValueError("percent, above 0 up to 100, or off")


Percent = Annotated[
    float,
    pydantic.BeforeValidator(_percent),
    _schema(anyOf=[{"type": "number", "exclusiveMinimum": 0, "maximum": 100}, {"enum": ["off", False]}]),
]


class CheckEntry(pydantic.BaseModel):
    """From which change on `stbench check` fails, percent, or off; never below the device's own noise."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    decode_tps: Percent | None = pydantic.Field(None, description="decode speed, higher is better (2)")
    prefill_tps: Percent | None = pydantic.Field(
        None, description="prefill speed, higher is better (not checked)"
    )
    ttft_ms: Percent | None = pydantic.Field(
        None, description="time to first token, lower is better (not checked)"
    )
    tpot_p95_ms: Percent | None = pydantic.Field(
        None, description="95th percentile of the time per token, lower is better (not checked)"
    )
    peak_rss_bytes: Percent | None = pydantic.Field(None, description="peak memory, lower is better (2)")
    joules_per_token: Percent | None = pydantic.Field(
        None, description="energy of a token, lower is better (not checked)"
    )


class DeviceEntry(pydantic.BaseModel):
    """One device. Every key may be missing: it then comes from `extends` or from a default."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    enabled: bool | None = pydantic.Field(None, description="whether a sweep uses it (true); never inherited")
    connector: Literal["local", "ssh"] | None = pydantic.Field(None, description="how to reach it (local)")
    host: Host | None = pydantic.Field(None, description="name or address; [01:16] as in the device's name")
    port: Annotated[int, pydantic.Field(ge=1, le=65535)] | None = pydantic.Field(
        None, description="of its SSH server (22)"
    )
    user: User | None = pydantic.Field(None, description="to log in as (who you are here)")
    ssh_config: Alias | None = pydantic.Field(None, description="a Host of ~/.ssh/config that says the rest")
    key: AbsolutePath | None = pydantic.Field(None, description="path of a private key, not the key itself")
    proxy_jump: ProxyJump | None = pydantic.Field(
        None, description="hosts to go through: me@gateway:22,inner"
    )
    work_dir: AbsolutePath | None = pydantic.Field(None, description="where everything of ours lies on it")
    python: CommandLine | None = pydantic.Field(None, description="its Python 3.8 or newer")
    threads: Threads | None = pydantic.Field(None, description="a count, a list, all or auto")
    cpus: Cpus | None = pydantic.Field(None, description='thread i is pinned to the i-th: "4-7"')
    memory_limit: Literal["auto", "cgroup-v2", "cgroup-v1", "boot", "ballast", "none"] | None = (
        pydantic.Field(None, description="how rows with a memory limit are held to it (auto)")
    )
    models: dict[str, ModelPlace] | None = pydantic.Field(
        None, description="model name: path on the device, or hf:owner/repository/file.gguf[@revision]"
    )
    tags: list[str] | None = pydantic.Field(None, description="words of your own")
    extends: str | None = pydantic.Field(None, description="take the keys of this device that are not given")
    cool_down: Annotated[float, pydantic.Field(ge=0, le=3600)] | None = pydantic.Field(
        None, description="seconds to wait at most for it to cool down before a run (120)"
    )
    power: CommandLine | None = pydantic.Field(
        None, description="a command of this machine that power-cycles the device"
    )
    timeout: Seconds | None = pydantic.Field(None, description="another name of timeouts.run")
    timeouts: Timeouts | None = None
    check: CheckEntry | None = None
    # Checked by itself, in stbench.devices.engine_entries.
    engines: Any = pydantic.Field(None, description="programs to measure beside ours")

    @pydantic.model_validator(mode="after")
    def _one_run_timeout(self) -> DeviceEntry:
        if self.timeout is not None and self.timeouts is not None and self.timeouts.run is not None:
            raise ValueError("timeout or timeouts.run, which are the same, and not both")
        return self
