"""The command line on a hostile target of torch: a sentence and exit code 2, within seconds and little memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from gradlint.process.parent import worker

MOST_SECONDS = 30.0
MOST_MEMORY = 1.5  # GB, of which torch itself takes 0.4 and transformers 0.3


@pytest.fixture
def refused_within_limits(run, tmp_path):
    """Run the command line on a target; it has to be refused with one sentence, and nothing in it may have run."""

    def check(*args, because=""):
        start = time.monotonic()
        code, out, err = run(
            *map(str, args), "--memory-limit", str(MOST_MEMORY), "--time-limit", str(MOST_SECONDS), "--seeds", "1"
        )
        assert time.monotonic() - start < MOST_SECONDS
        assert (code, out) == (2, "")
        assert because in err
        assert not any(text in err for text in ("internal error", "Traceback", "needs more than", "took longer", "died with"))
        assert len(err) < 2000
        assert err.isprintable() or all(char.isprintable() or char == "\n" for char in err)
        assert not [*tmp_path.rglob("PLANTED")]
        assert not Path("/PLANTED").exists()
        process = worker._process
        if sys.platform == "linux" and process is not None:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            assert peak < MOST_MEMORY * 2**20

    return check
