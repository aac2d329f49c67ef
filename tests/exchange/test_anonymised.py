"""An export that a stranger may read: every string of it is looked at."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stbench import cli
from stbench.agent import wire
from stbench.agent.wire import ModelRef, Program, RunRecord, Settings, Versions
from stbench.exchange import formats
from stbench.exchange.anonymised import anonymised
from stbench.exchange.selection import select
from stbench.records.frame import to_frame
from tests.exchange import real
from tests.tables.factory import facts, record

# A name within a longer word is not the name: the user "bench" and the program llama-bench.
PRIVATE = (
    r"epyc-2core",
    r"/home/bench",
    r"(?<![\w-])bench(?![\w-])",
    r"\.cache/stbench/models",
    r"dd55fb0c",
)


def strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from strings(value)


@pytest.mark.parametrize("results", [real.QUICK, real.LIMITED])
def test_no_string_of_a_real_campaign_names_its_machine(tmp_path: Path, results: Path) -> None:
    out = tmp_path / "all.parquet"
    words = ["export", str(results), "--to", "parquet", "--anonymise", "--out", str(out), "--quiet"]
    assert cli.main(words) == 0
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(io.BytesIO(out.read_bytes())).to_pylist()
    texts = [text for row in rows for text in strings(row)]
    texts += [text for row in rows for text in strings(json.loads(row["record"]))]
    assert len(texts) > 1000 or results == real.LIMITED
    for pattern in PRIVATE:
        found = {text for text in texts if re.search(pattern, text)}
        assert not found, (pattern, sorted(found)[:3])
    assert {json.loads(row["record"])["facts"]["hostname"] for row in rows} == {"host-1"}
    assert not {row["device"] for row in rows} - {"local"}


def test_numbers_and_cases_stay() -> None:
    before, after = select(real.quick()), select(anonymised(real.quick()))
    assert [case.label for case in before.cases] == [case.label for case in after.cases]
    assert [case.values("decode_tps") for case in before.cases] == [
        c.values("decode_tps") for c in after.cases
    ]
    kept = ("digest", "output_hash", "fingerprint", "isa", "library", "status", "record_id")
    frames = [
        to_frame(sorted(records, key=lambda r: (r.id, r.attempt)))
        for records in (real.quick(), anonymised(real.quick()))
    ]
    for name in kept:
        assert list(frames[0][name]) == list(frames[1][name]), name


def planted() -> list[RunRecord]:
    """Two boards of one owner, with everything that could slip into a record."""
    env = {"HF_TOKEN": "hf_abcdefghijklmnop", "MODE": "hushhush"}
    command = ["/srv/tea-party/bin/runner", "--key", "sk-0123456789abcdef", "--out", "/mnt/wonder/land/x.log"]
    detail = (
        "alices-kitchen-pi: cannot open /home/alicew/models/secret-project/x.gguf: 10.11.12.13, "
        "2c:cf:67:aa:bb:cc, fe80::2ecf:67ff:feaa:bbcc, duchess@cheshire.test, Serial: 10000000deadbeef, "
        "password=hushhush https://wonder.example/hook?k=1 token: hushhush /media/alicew/disk/a"
    )
    model = ModelRef("/home/alicew/models/secret-project/x.gguf", "/home/alicew/models/secret-project/x.gguf")
    one = replace(
        record(synthetic=False, device="alices-pi"),
        facts=facts(hostname="alices-kitchen-pi", boot_id="0f1d2c3b-4a59-4687-9d0e-1f2a3b4c5d6e"),
        detail=detail,
        model=model,
        program=Program("external", command, env),
        settings=Settings(bundle="/srv/tea-party/bundles/x.bundle"),
        versions=Versions("0.1.0", {"command": command, "note": [f"run by alicew at {detail}"]}, "ab" * 32),
        campaign="alices-kitchen-pi-nightly",
        warnings=[detail],
    )
    one = replace(
        one, label=f"alices-pi:{model.name}/dense/t2/pp39+tg4", case=f"{model.name}/dense/t2/pp39+tg4"
    )
    other = replace(
        one, id="other", device="bobs-pi", label="bobs-pi:" + one.case, facts=facts(hostname="bobs")
    )
    return [one, other, replace(one, id="third", replicate=1)]


SECRET = (
    *("alice", "kitchen", "bobs", "hf_ab", "hushhush", "sk-0", "tea-party", "wonder", "secret-project"),
    *("10.11.12.13", "2c:cf:67", "fe80::", "duchess", "deadbeef", "0f1d2c3b"),
)


def test_planted_secrets_are_gone_everywhere_and_one_host_has_one_name() -> None:
    found = anonymised(planted())
    for text in strings([wire.to_json(one) for one in found]):
        for secret in SECRET:
            assert secret not in text.lower(), text
    names = {one.id: (one.device, one.facts.hostname) for one in found if one.facts}
    assert names["third"] != names["other"]
    assert len(set(names.values())) == 2
    assert [one.label.count("x.gguf/dense/t2/pp39+tg4") for one in found] == [1, 1, 1]
    assert anonymised(reversed(planted())) == found


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--api-key", "Zq8sJk2LmN"],
        ["run", "-token", "Zq8sJk2LmN"],
        ["run", "--hf-token", "Zq8sJk2LmN"],
        ["run", "--auth", "alice:Zq8sJk2LmN"],
        ["run", "--key=Zq8sJk2LmN"],
        ["curl", "-H", "Authorization: Bearer Zq8sJk2LmN"],
        ["curl", "-H", "Authorization:", "Bearer", "Zq8sJk2LmN"],
        ["sh", "-c", "run --password Zq8sJk2LmN --threads 4"],
        ["sh", "-c", "curl -H 'authorization: basic Zq8sJk2LmN' x"],
        ["curl", "-H", "Authorization: Bearer", "Zq8sJk2LmN"],
        ["said", "bearer Zq8sJk2LmN"],
        ["run", "--ssh-key", "Zq8sabc"],
        ["said", "per token: password=Zq8sJk2LmN"],
        ["run", "--password=-Zq8sJk2LmN"],
        ["sh", "-c", "run --password 'my Zq8s words' --threads 4"],
        ["sh", "-c", 'run --secret="my \\" Zq8s words" --threads 4'],
        ["sh", "-c", "passphrase: 'my Zq8s words'"],
    ],
)
def test_a_secret_that_is_a_word_of_its_own_is_taken_out(command: list[str]) -> None:
    runtime = {"command": command, "api_key": "Zq8sJk2LmN", "said": " ".join(command)}
    one = replace(
        record(),
        program=Program("external", [*command, "--threads", "4"], {}),
        detail=f"it said: {' '.join(command)} and ended",
        versions=Versions("0.1.0", runtime, "ab" * 32),
    )
    (found,) = anonymised([one])
    for text in strings(wire.to_json(found)):
        assert "Zq8s" not in text, text
    assert found.program is not None
    assert found.program.command[-2:] == ["--threads", "4"]
    assert found.detail.endswith(" and ended")


def test_what_is_within_something_secret_is_secret() -> None:
    held = {
        "password": {"v": "abc", "more": ["def", {"w": "ghi"}], "pin": 7654321},
        "token": {"value": "hushhush", "id": 5},
        "model": {"eos_token": "</s>", "bos_token": "begin", "token": "<|im_end|>", "max_token": "64"},
    }
    (found,) = anonymised([replace(record(), versions=Versions("0.1.0", held, "ab" * 32))])
    assert found.versions is not None
    gone = "removed"
    assert found.versions.runtime == {
        "password": {"v": gone, "more": [gone, {"w": gone}], "pin": gone},
        "token": {"value": gone, "id": 5},
        "model": held["model"],
    }


def test_a_text_cut_off_within_a_quoted_secret_keeps_none_of_it() -> None:
    (found,) = anonymised([replace(record(), detail="run --password 'my hush words and mo")])
    assert found.detail == "run --password removed"


@pytest.mark.parametrize(
    "words",
    [
        ["--secret", "--next"],
        ["--no-auth", "--threads", "4"],
        ["--no-auth", "serve"],
        ["--sort-key", "time"],
        ["--sort-key", "decode_speed"],
        ["--hot-key", "5"],
        ["--max-token", "64"],
        ["--token", "64"],
        ["token:", "64"],
        ["basic", "step"],
        ["bearer", "of", "news"],
    ],
)
def test_words_that_follow_no_secret_stay(words: list[str]) -> None:
    one = replace(record(), program=Program("external", words, {}), detail=" ".join(words))
    (found,) = anonymised([one])
    assert found.program is not None
    assert (found.program.command, found.detail) == (words, " ".join(words))


@pytest.mark.parametrize(
    "text",
    [
        *("3 tok/s per token 5", "--tokens 5 --n-gen 6", "monkey abc", "basic step"),
        *("bearer of news", "bearer something-else", "per token: 4.2 ms", "per token: unknown"),
        *("time to first token: 80ms", '{"eos_token":"</s>"}', '{"eos_token": "end", "n": 5}', "token: 4.2"),
    ],
)
def test_what_only_sounds_like_a_secret_stays(text: str) -> None:
    (found,) = anonymised([replace(record(), detail=text)])
    assert found.detail == text


@pytest.mark.parametrize("kind", sorted(formats.FORMATS))
def test_no_format_brings_them_back(kind: str) -> None:
    written = formats.FORMATS[kind].write(select(anonymised(planted())))
    text = written.decode("latin-1") if isinstance(written, bytes) else written
    for secret in SECRET:
        assert secret not in text.lower()
