"""Measure the time until ``edgerec --help`` ends, and until the camera's first prediction.

    python benchmarks/startup.py BUNDLE SOURCE [--times 7]

The script prints the minimum and the median of the wall time from the start of the process, in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def help_s() -> float:
    """Return the seconds until ``edgerec --help`` ends."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "edgerec", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def first_prediction_s(bundle: str, source: str) -> float:
    """Return the seconds until ``edgerec camera`` prints its first line."""
    start = time.monotonic()
    command = ["camera", bundle, "--source", source, "--headless", "--json", "--max-frames", "1"]
    with subprocess.Popen([sys.executable, "-m", "edgerec", *command], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        return time.monotonic() - start


def main() -> None:
    """Print both times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("source")
    parser.add_argument("--times", type=int, default=7)
    arguments = parser.parse_args()
    durations = {
        "help_s": [help_s() for _ in range(arguments.times)],
        "first_prediction_s": [first_prediction_s(arguments.bundle, arguments.source) for _ in range(arguments.times)],
    }
    print(
        json.dumps(
            {k: {"best": round(min(v), 3), "median": round(statistics.median(v), 3)} for k, v in durations.items()}
        )
    )


if __name__ == "__main__":
    main()
