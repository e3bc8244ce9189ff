"""`make bench`: every benchmark, one after the other; results in benchmarks/results/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NOT_ALONE = {"__init__", "__main__", "report", "published", "hardware", "full_size", "judge", "learning", "recognition", "big_files", "conversion"}
"""What is no benchmark, or takes gigabytes, a download or half an hour: such a one is run when somebody asks for it."""
BENCHMARKS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_ALONE)

if __name__ == "__main__":
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
