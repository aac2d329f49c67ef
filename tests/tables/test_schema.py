"""The generated schema is up to date, and records fit it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jsonschema
import pytest

from stbench import schema
from stbench.agent.wire import STATUSES, RunRecord, to_json
from tests.tables.factory import record

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.main([str(DOCS), "--check"]) == 0, capsys.readouterr().out


def test_schema_is_valid_and_describes_every_field() -> None:
    made = schema.json_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    assert list(made["$defs"]["RunRecord"]["properties"]) == [f.name for f in dataclasses.fields(RunRecord)]
    page = schema.markdown()
    for kind in schema.record_types():
        assert f"## {kind.__name__}\n" in page
        for field in dataclasses.fields(kind):
            assert f"| `{field.name}` |" in page


@pytest.mark.parametrize("status", STATUSES)
def test_records_fit(status: str) -> None:
    jsonschema.validate(to_json(record(status=status)), schema.json_schema())


@pytest.mark.parametrize(
    ("key", "value"), [("status", "fine"), ("replicate", "1"), ("model", None), ("samples", {"ttft_ns": 1})]
)
def test_others_do_not(key: str, value: object) -> None:
    data = {**to_json(record()), key: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema.json_schema())


def test_unknown_fields_are_allowed() -> None:
    jsonschema.validate({**to_json(record()), "from_the_future": 1}, schema.json_schema())


def test_check_finds_a_stale_file_and_writing_mends_it(tmp_path: Path) -> None:
    assert schema.main([str(tmp_path)]) == 0
    assert schema.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "records.md").write_text("old")
    assert schema.main([str(tmp_path), "--check"]) == 1
    assert (tmp_path / "records.md").read_text() == "old"
    schema.main([str(tmp_path)])
    assert schema.main([str(tmp_path), "--check"]) == 0
