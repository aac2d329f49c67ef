"""Records without what names a machine, its people or its places.

Host names, user names, home and other directories, mail, MAC and IP addresses, UUIDs, serial numbers, URLs,
and whatever looks like a key. Stand-ins are numbered in the order in which the records (sorted) need them, so
the same host is ``host-1`` in the whole export and the same records give the same bytes; another export
numbers anew. What stays, because results mean nothing without it: model names, digests, hardware, kernel,
settings, times. ``stbench/doctor/anonymous.py`` finds what looks private; this module knows where records
keep it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.agent.wirecapture import Capture
from stbench.devices.engine_names import LLAMA_BENCH
from stbench.doctor.anonymous import EVERYBODYS, Anonymous
from stbench.records.frame import unique_records
from stbench.tables.published import published_tables

# What is hexadecimal and no serial number, where these hold it.
_DIGESTS = {
    *("id", "digest", "library_sha256", "output_hash", "logits_hash", "kept_hash", "model_digest", "key"),
    *("fingerprint", "routing_digest", "sha256", "build_commit", "search", "reference"),
}
_HEXADECIMAL = re.compile(r"[0-9a-f]{7,64}")

# Words of closed lists, and names of engines: no text of anybody's.
_CLOSED = {
    *("status", "purpose", "provenance", "verdict", "outcome", "kind", "method", "isa", "kv_type", "load"),
    *("engine", "architecture", "weight_type", "profile", "features", "isas", "machine", "started_at"),
    *("sparse_ffn", "down_layout", "cache", "cache_policy", "io", "io_direct", "prefetch", "start"),
    *("throttled", "compiler", "test_time", "type_k", "type_v", "backends"),
}

# Names of programs that a user may share a word with.
_WORDS = re.compile(rf"({LLAMA_BENCH}|llama\.cpp|stbench)")

_SECRETS = re.compile(
    r"\b(?:hf_|ghp_|gho_|ghs_|github_pat_|glpat-|sk-|xox[abps]-|AKIA)[A-Za-z0-9_-]{8,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*-----|$)"
)
# Whatever has such a name is secret.
_SURE = (
    r"(?:password|passwd|passphrase|secret|credentials?"
    r"|(?:api|access|auth|private|secret|ssh|signing|encryption|license|master|deploy)[_-]?key)"
)
_SURE_NAME = re.compile(rf"[\w-]*{_SURE}", re.IGNORECASE)
# Tokens of models, and switches that turn something off.
_NO_SECRET_NAME = re.compile(
    r"(?:[\w-]*[_-])?(?:bos|eos|eot|eom|pad|unk|sep|cls|mask|stop|max|min|per|first|last|next)[\s_-]+token"
    r"|no[_-].*",
    re.IGNORECASE,
)
# What a value is that only looks like one of a token or key: numbers with a unit, and special tokens.
_NO_SECRET = re.compile(
    r"[+-]?\d[\d.,_]*(?:e[+-]?\d+)? ?(?:[nuµm]?s|%|x|[kMG]i?B?|tok(?:ens)?/s)?"
    r"|</?[^<>]*>|(?-i:\[[A-Z_]+\])|\S{0,2}",
    re.IGNORECASE,
)
# A value: a quoted one whole, also where its end was cut off.
_VALUE = r"""(?P<value>"(?:\\.|[^"\\])*(?:"|$)|'[^']*(?:'|$)|\S+)"""
_NAMED_SECRETS = re.compile(
    rf"(?<![\w-])(?P<name>(?:(?:per|first|last|next)\s+)?[\w-]*?(?:{_SURE}|token))(?P<between>[\"']?\s*[=:]\s*)"
    + _VALUE,
    re.IGNORECASE,
)
# A header's value has words of its own before the secret; what Digest sends has several behind it.
_SCHEME = "(?:bearer|basic|negotiate|apikey|token)"
_HEADERS = re.compile(
    rf"(authorization[\"']?\s*[=:]\s*[\"']?)(?:digest\s.*|(?:{_SCHEME}\s+)?[^\s\"']+)",
    re.IGNORECASE,
)
_BEARERS = re.compile(r"(\bbearer\s+)([^\s\"']+)", re.IGNORECASE)
# An option whose value is the next word: of the same text, or of a list of words.
_OPTION = rf"--?(?P<name>[\w-]*(?:{_SURE}|token)|(?:[\w-]*[_-])?(?:key|auth))"
_OPTION_SECRETS = re.compile(rf"(?<![\w-]){_OPTION}(?P<between>\s+(?!-)|=){_VALUE}", re.IGNORECASE)
_NEXT_IS_NAMED = re.compile(rf"{_OPTION}|(?P<other>[\w-]*(?:{_SURE}|token))[=:]", re.IGNORECASE)
_NEXT_IS_SECRET = re.compile(rf"(?:proxy-)?authorization[=:]\s*{_SCHEME}?", re.IGNORECASE)
_NEXT_MAY_BE_SECRET = re.compile(r"bearer|basic", re.IGNORECASE)
_SECRET_KEY = re.compile(rf"[\w-]*(?:{_SURE}|token)|(?:proxy-)?authorization", re.IGNORECASE)
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://[^\s\"']+", re.IGNORECASE)

# Directories that are the same everywhere.
_SYSTEM = "(?:dev|proc|sys|usr|etc|lib|lib64|bin|sbin|boot|vendor|system)(?:/|$)"
_DIRECTORY = re.compile(rf"(?<![\w.:/~+-])/(?!{_SYSTEM}|path-[0-9]+/)(?:[^/\s\"':;,()]+/)+")
_HOME = re.compile(r"/(?:home|Users|export/home)/([^/\s\0]+)")


def anonymised(records: Iterable[RunRecord], private: Iterable[str] = ()) -> list[RunRecord]:
    """The records, sorted, without what is private; ``private``: more words to take out."""
    ordered = unique_records(records)
    replace = _Replacer(ordered, private)
    return [wire.from_json(RunRecord, replace.record(wire.to_json(record))) for record in ordered]


class _Replacer:
    """Knows every name that occurs in the records before the first is replaced."""

    def __init__(self, records: list[RunRecord], private: Iterable[str]) -> None:
        known = {device.key for table in published_tables() for device in table.devices} | EVERYBODYS
        self._hosts = _numbered("host", (r.facts.hostname for r in records if r.facts))
        self._devices = _numbered("device", (r.device for r in records), known)
        data = [wire.to_json(record) for record in records]
        texts = [text for one in data for text in _strings(one)]
        users = {name for text in texts for name in _HOME.findall(text)} - EVERYBODYS
        self._paths = _numbered("path", (folder for one in data for folder in _folders(one)))
        # Names of memory groups begin with the boot's first digits.
        boots = {r.facts.boot_id[:8] for r in records if r.facts and r.facts.boot_id}
        self._known: dict[str, str] = {}
        self._anonymous = Anonymous(Capture(), [*private, *users, *boots])
        # The longest first: a name within a name must not leave half of it.
        named = {**self._hosts, **self._devices}
        self._names = sorted(((n, s) for n, s in named.items() if n != s), key=lambda pair: -len(pair[0]))

    def record(self, data: dict[str, Any]) -> dict[str, Any]:
        """The JSON object of a record."""
        device, label = data["device"], data["label"]
        prefix = f"{device}:"
        rest = label[len(prefix) :] if label.startswith(prefix) else label
        clean: dict[str, Any] = self._value("", data)
        clean["device"] = self._devices[device]
        clean["label"] = f"{clean['device']}:{self._text(rest)}"
        if clean["facts"] is not None:
            clean["facts"]["hostname"] = self._hosts[data["facts"]["hostname"]]
        if clean["program"] is not None:
            # What a variable holds may be a key, whatever it is called.
            clean["program"]["environment"] = dict.fromkeys(clean["program"]["environment"], "removed")
        return clean

    def _value(self, key: str, value: Any, within: str = "") -> Any:
        """``within``: the nearest key above that names something secret, whose parts are secret, too."""
        within = key if _SECRET_KEY.fullmatch(key) and not _SURE_NAME.fullmatch(within) else within
        if isinstance(value, dict):
            return {
                self._text(str(name)): self._value(str(name), inner, within) for name, inner in value.items()
            }
        if isinstance(value, list):
            before = ["", "", *value]
            return [
                "removed" if _is_secret(first, word, inner) else self._value(key, inner, within)
                for first, word, inner in zip(before, before[1:], value, strict=False)
            ]
        said = isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value)
        if said and within and _reveals(within, said):
            return "removed"
        if isinstance(value, str):
            kept = key in _CLOSED or (key in _DIGESTS and _HEXADECIMAL.fullmatch(value))
            return value if kept else self._text(value)
        return value

    def _text(self, text: str) -> str:
        """The records of a campaign say most things many times."""
        if text not in self._known:
            self._known[text] = self._without(text)
        return self._known[text]

    def _without(self, text: str) -> str:
        text = _SECRETS.sub("removed", text)
        text = _HEADERS.sub(r"\1removed", text)
        text = _BEARERS.sub(lambda hit: f"{hit[1]}removed" if _is_credential(hit[2]) else hit[0], text)
        text = _OPTION_SECRETS.sub(_without_value, text)
        text = _NAMED_SECRETS.sub(_without_value, text)
        text = _URL.sub("url", text)
        for folder, name in self._paths.items():
            text = text.replace(f"{folder}/", f"/{name}/")
        text = _DIRECTORY.sub("/path/", text)
        for word, name in self._names:
            text = _as_word(word).sub(name, text)
        parts = _WORDS.split(text)
        return "".join(part if i % 2 else self._anonymous.text(part) for i, part in enumerate(parts))


def _is_secret(first: Any, before: Any, word: Any) -> bool:
    """Whether a word of a list is what the two words before it announce."""
    if not isinstance(before, str) or not isinstance(word, str) or word.startswith("-"):
        return False
    before = before.strip()
    if named := _NEXT_IS_NAMED.fullmatch(before):
        return _reveals(named["name"] or named["other"], word)
    if _NEXT_MAY_BE_SECRET.fullmatch(before):
        header = isinstance(first, str) and _NEXT_IS_SECRET.fullmatch(first.strip()) is not None
        return header or _is_credential(word)
    return _NEXT_IS_SECRET.fullmatch(before) is not None


def _reveals(name: str, value: str) -> bool:
    """Whether a value by this name, one of those that the patterns above know, is to be taken out."""
    if _NO_SECRET_NAME.fullmatch(name):
        return False
    if _SURE_NAME.fullmatch(name):
        return True
    if name.lower().endswith("key") and name.lower() != "key":
        return _is_credential(value)
    return not _NO_SECRET.fullmatch(value.strip("\"',;{}() "))


def _is_credential(word: str) -> bool:
    """Whether it looks like a key, rather than like words: a digit or symbol among 8 characters or more."""
    word = word.strip("\"'.,;:!?(){}")
    return len(word) >= 8 and not re.fullmatch(r"[^\W\d_]+(?:[_-][^\W\d_]+)*", word)


def _without_value(hit: re.Match[str]) -> str:
    kept = hit[0][: hit.start("value") - hit.start()]
    if _reveals(hit["name"], hit["value"]):
        return f"{kept}removed"
    return kept + _NAMED_SECRETS.sub(_without_value, hit["value"])


def _as_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", re.IGNORECASE)


def _numbered(kind: str, names: Iterable[str], known: Iterable[str] = ()) -> dict[str, str]:
    """Name -> stand-in, in the order of first appearance; known ones stand for themselves."""
    given: dict[str, str] = {}
    known = set(known)
    for name in names:
        if name not in given:
            number = 1 + sum(stand_in != other for other, stand_in in given.items())
            given[name] = name if name in known else f"{kind}-{number}"
    # The longest first: a directory within another must not leave half of it.
    return dict(sorted(given.items(), key=lambda pair: -len(pair[0])))


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield str(key)
            yield from _strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value)


def _folders(data: dict[str, Any]) -> Iterator[str]:
    """Directories of the files that a record names, and what a model is called by its path."""
    settings, program = data["settings"], data["program"] or {}
    files = [data["model"]["path"], data["model"]["name"]]
    files += [settings[key] for key in ("bundle", "routing", "record_routing", "timeline")]
    files += [word for word in program.get("command", []) if word.startswith("/")]
    for name in files:
        folder = str(PurePosixPath(name).parent) if "/" in name else "."
        if folder not in (".", "/", ".."):
            yield folder
