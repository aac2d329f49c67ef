"""devices.yaml holds no secret: keys that are called like one, and values that look like one, are refused
without being shown."""

from __future__ import annotations

import itertools
import re
from typing import Any

from stbench import yamlfile

_WORDS = {"password", "passwd", "passphrase", "pass", "pwd", "secret", "token", "credential", "credentials"}
_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("auth", "key")}
_JOINED = {"apikey", "accesskey", "privatekey", "authkey", "keypass", "sshpass", "userpass"}

# user:password@host, in a key that names a host; and a private key where its path belongs.
_LOGIN = re.compile(r"[^\s/@:,]+:[^\s/@,]+@")
_LOGIN_KEYS = ("host", "user", "proxy_jump", "ssh_config")
_PEM = "PRIVATE KEY-----"

_NAMED = (("models",), ("engines",), ("check",))

_SENTENCE = (
    "secrets do not belong in this file, which gets copied and mailed: take it out; passwords and "
    "passphrases come from ssh-agent or are asked for at a terminal"
)


def take_out_secrets(document: yamlfile.Document) -> None:
    """Adds a problem for each key that is a secret, and takes it out of the data, so that no other message
    shows its value."""
    if isinstance(document.data, dict):
        document.data = _without(document, document.data, ())


def _without(document: yamlfile.Document, value: Any, path: yamlfile.Path) -> Any:
    if isinstance(value, list):
        return [_without(document, item, (*path, i)) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        # The names of devices, models and engines are names, whatever they say; keys of `check` are metrics.
        named = path in ((), ("devices",), ("engines",)) or path[-1:] in _NAMED
        if not named and (_called_like_one(key) or _looks_like_one(key, inner)):
            document.add((*path, key), _SENTENCE)
        else:
            kept[key] = _without(document, inner, (*path, key))
    return kept


def _called_like_one(key: str) -> bool:
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())
    pairs = set(itertools.pairwise(words))
    return bool(_WORDS.intersection(words) or _JOINED.intersection(words) or _PAIRS & pairs)


def _looks_like_one(key: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return _PEM in value or (key in _LOGIN_KEYS and _LOGIN.search(value) is not None)
