"""Time and peak memory of evaluate, report, merge and the review page on results folders of 1 and 3 million rows.

    python benchmarks/rows.py [FOLDER]

Scores of images without maps; each command runs in its own process, on the folder with its Parquet parts. Bytes a row are the
growth of peak memory from the smaller folder to the larger one. Seconds are those of the processor; of evaluation without its
bootstrap, whose seconds per resample stand beside them (1,000 resamples are the default). FOLDER keeps the results folders for
another run. Writes results/rows.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from normalcy.provenance import write_record
from normalcy.results.predict import finish_scores
from normalcy.results.run import COLUMNS, POSITIONS, Model, Run, Scored, Shard, Thresholds
from normalcy.results.schema import dumps
from normalcy.results.writer import Writer

SIZES = (1_000_001, 3_000_000)
RESAMPLES = 20
SHARDS = 4
KINDS = ("", "crack", "scratch", "stain")


def make(folder: Path, rows: range, count: int, shard: Shard | None = None) -> None:
    """A results folder of these images of a data set of ``count``."""
    folder.mkdir(parents=True)
    writer = Writer(folder)
    rng = np.random.default_rng(rows.start)
    with writer.table("scores.csv", COLUMNS) as add:
        for i in rows:
            kind = int(rng.integers(1, 4)) if rng.random() < 0.01 else 0
            score, p = float(rng.normal() + 2 * (kind > 0)), float(rng.integers(1, 1000)) / 1000
            path = f"line-{i % 7}/2026-11/{i:09d}.png"
            add((path, path, repr(score), repr(p), int(score > 2), int(kind > 0), KINDS[kind], "test", path))
    finish_scores(writer, len(rows))
    limits = Thresholds(count=999, threshold=2.0, rule="false_alarms", false_alarms=0.05)
    run = Run(Model("pca"), Scored("line", count=len(rows)), limits)
    if shard is not None:
        writer.array(POSITIONS, np.array(rows, np.int64))
        run = replace(run, data=replace(run.data, shard=shard))
    writer.bytes("run.json", dumps(run))


def evaluate(folder: Path) -> dict[str, float]:
    from normalcy.results.evaluate import evaluate as evaluate_results

    seconds = []
    for resamples in (2, 2, RESAMPLES):  # the first imports what is needed
        started = time.process_time()
        evaluate_results(folder, resamples=resamples)
        seconds.append(time.process_time() - started)
    each = (seconds[2] - seconds[1]) / (RESAMPLES - 2)
    return {"seconds": seconds[1] - 2 * each, "seconds_per_resample": each}


def report(folder: Path) -> dict[str, float]:
    from normalcy.report import write_report

    return {"page_bytes": float(write_report(folder).stat().st_size)}


def review(folder: Path) -> dict[str, float]:
    from normalcy.review.queue import Asked
    from normalcy.review.session import Review

    def timed(work: Callable[[], object]) -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    opened = Review([folder], read_only=True)

    def page(asked: Asked, start: int = 0) -> None:
        queue = opened.queues.open(asked)["queue"]
        opened.rows(opened.queues.images(queue, start, 100))

    return {
        "seconds_facts": timed(opened.facts),
        "seconds_first_page": timed(lambda: page(Asked())),
        "seconds_page_in_the_middle": timed(lambda: page(Asked(), len(opened.read) // 2)),
        "seconds_filter": timed(lambda: page(Asked(filter="flagged", threshold=1.5))),
        "seconds_rare_search": timed(lambda: page(Asked(search="00777"))),
        "seconds_common_search": timed(lambda: page(Asked(search="png"))),
        "seconds_threshold": timed(lambda: opened.queues.flagged(1.0)),
    }


def merge(folder: Path) -> dict[str, float]:
    from normalcy.results.shards import merge as merge_shards

    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        merge_shards(sorted(folder.with_name(f"{folder.name}-shards").iterdir()), Path(out) / "merged")
    return {}


COMMANDS = {"evaluate": evaluate, "report": report, "review": review, "merge": merge}


def one(command: str, folder: Path) -> None:
    """Run a command and print its peak memory (MiB) and times."""
    started = time.process_time()
    found = COMMANDS[command](folder)
    seconds = time.process_time() - started
    status = Path("/proc/self/status").read_text()  # not getrusage, whose maximum is at least that of the parent
    peak = int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({"peak_mib": peak / 1024, "seconds": seconds, **found}))


def main(kept: Path | None = None) -> None:
    found: dict[str, dict[str, object]] = {command: {} for command in COMMANDS}
    with tempfile.TemporaryDirectory() as root:
        for count in SIZES:
            folder = (kept or Path(root)) / str(count)
            if not folder.exists():
                make(folder, range(count), count)
                for k in range(SHARDS):
                    part = folder.with_name(f"{folder.name}-shards") / str(k)
                    make(part, range(k, count, SHARDS), count, Shard(k + 1, SHARDS, "made"))
            for command in COMMANDS:
                done = subprocess.run(
                    [sys.executable, __file__, command, str(folder)], capture_output=True, text=True, check=True
                )
                numbers = {key: float(f"{v:.4g}") for key, v in json.loads(done.stdout.splitlines()[-1]).items()}
                numbers["rows_per_second"] = round(count / numbers["seconds"])
                found[command][str(count)] = numbers
                print(command, count, numbers, flush=True)
    for command, of in found.items():
        small, large = (of[str(count)]["peak_mib"] for count in SIZES)  # type: ignore[index]
        of["bytes_per_row"] = round((large - small) * 2**20 / (SIZES[1] - SIZES[0]))
        print(command, of["bytes_per_row"], "bytes a row")
    write_record(
        Path(__file__).parent / "results" / "rows.json",
        {"benchmark": "results folders of millions of rows", "resamples": RESAMPLES, "shards": SHARDS, "found": found},
    )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        one(sys.argv[1], Path(sys.argv[2]))
    else:
        main(*map(Path, sys.argv[1:]))
