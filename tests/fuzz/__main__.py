"""`python -m tests.fuzz TARGET RUNS FOLDER`: fuzzing led by coverage, with atheris (libFuzzer).

FOLDER keeps the inputs that reached something new, for the next run to start from, and what was found:
crash-…, timeout-… or oom-…. The exit code is 0 when nothing was.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path

atheris = import_module("atheris")  # which is not always there

with atheris.instrument_imports(include=["evertap", "asyncvarlink", "qemu.qmp", "tomllib", "tomlkit"]):
    from tests.fuzz.targets import TARGETS

_LIMITS = ("-timeout=20", "-rss_limit_mb=1024", "-max_len=8192", "-print_final_stats=1")
_WORD_MAX = 60  # bytes, of libFuzzer's dictionaries


def main(name: str, runs: str, folder: str) -> None:
    """Does not return."""
    target = TARGETS[name]
    corpus = Path(folder) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(target.seeds):
        (corpus / f"seed-{place}").write_bytes(seed)
    words = Path(folder) / "words"
    words.write_text("".join(f'"{_quoted(word)}"\n' for word in target.words if len(word) <= _WORD_MAX))
    tempfile.tempdir = folder  # nothing of Python's own runs at the end
    options = [*_LIMITS, f"-runs={runs}", f"-dict={words}", f"-artifact_prefix={folder}/"]
    atheris.Setup(["evertap-fuzz", *options, str(corpus)], target.run)
    atheris.Fuzz()


def _quoted(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(*sys.argv[1:])
