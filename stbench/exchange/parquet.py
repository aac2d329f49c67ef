"""Runs -> a Parquet file: every column of the frame, the raw samples, and the record itself as JSON."""

from __future__ import annotations

import io
import json

import pandas as pd

from stbench.agent import wire
from stbench.exchange.selection import Selection
from stbench.records.frame import COLUMNS

_SAMPLES = ("prefill_ns", "prefill_tokens", "decode_ns", "decode_tokens")


def parquet(selection: Selection) -> bytes:
    """One row per run, also of those without a number. Needs pyarrow (the extra ``parquet``)."""
    import pyarrow
    import pyarrow.parquet

    types = {
        "object": pyarrow.string(),
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
        "bool": pyarrow.bool_(),
    }
    arrays, fields = [], []
    for name, dtype in COLUMNS.items():
        kind = types[dtype]
        values = [_plain(run.row[name]) for run in selection.runs]
        arrays.append(pyarrow.array(values, type=kind))
        fields.append(pyarrow.field(name, kind))
    numbers = pyarrow.list_(pyarrow.int64())
    for name in _SAMPLES:
        found = [getattr(run.record.samples, name) if run.record.samples else None for run in selection.runs]
        arrays.append(pyarrow.array(found, type=numbers))
        fields.append(pyarrow.field(name, numbers))
    texts = [
        json.dumps(wire.to_json(run.record), separators=(",", ":"), allow_nan=False) for run in selection.runs
    ]
    arrays.append(pyarrow.array(texts, type=pyarrow.string()))
    fields.append(pyarrow.field("record", pyarrow.string()))
    schema = pyarrow.schema(fields, metadata={"stbench.schema": str(wire.SCHEMA_VERSION)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def _plain(value: object) -> object:
    """NaN is how a frame says that there is none."""
    return None if isinstance(value, float) and pd.isna(value) else value
