"""The few tests that failed in company run once more, one after another: on a machine that others load, too, a deadline
of a second passes without anybody's fault.

Rule: who failed has to pass three times in a row; more than three failures, or a run that broke off, are not looked at
again; and who passed only alone is named at the end, to be mended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOST = TIMES = 3


def main(code: int, kept: Path) -> int:
    """code, kept: of the first run, its exit code, and where pytest wrote what failed. The exit code of both."""
    failed = sorted(json.loads(kept.read_text())) if kept.is_file() else []
    if code != pytest.ExitCode.TESTS_FAILED or not 0 < len(failed) <= MOST:
        return code
    print(f"once more, alone: {len(failed)} of them", flush=True)
    for _ in range(TIMES):
        if again := subprocess.run([sys.executable, "-m", "pytest", "-q", *failed], check=False).returncode:
            return again
    print("passed only alone:", *failed, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
