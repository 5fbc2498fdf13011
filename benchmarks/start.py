"""Seconds of `import normalcy` and `normalcy --help`, against a bare interpreter; medians of 15 new processes.

    python benchmarks/start.py

Wanted: 0.3 s and 0.6 s. Writes results/start.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from normalcy.provenance import write_record

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import normalcy": [sys.executable, "-c", "import normalcy"],
    "normalcy --help": [str(Path(sys.executable).with_name("normalcy")), "--help"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(15):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    print(medians)
    write_record(
        Path(__file__).parent / "results" / "start.json",
        {
            "benchmark": "start-up",
            "wanted_seconds": {"import normalcy": 0.3, "normalcy --help": 0.6},
            "seconds": medians,
        },
    )


if __name__ == "__main__":
    main()
