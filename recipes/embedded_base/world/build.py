"""Build the wider world: the emoji pack with compositions, drawn people, photographs and textures.

    python build.py --emoji work/emoji128.tar --photographs FOLDER --out work/world128.tar

Every row follows from its kind and number alone, so any number of processes gives the same file.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))

from inputs import Inputs, read_credits, read_inputs
from pack import PackError, Row, read_pack, write_pack
from photographs import find_photographs
from rows import Job, list_jobs, make_row

THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Build the pack."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--emoji", type=Path, required=True, help="pack of ../data/build.py")
    parser.add_argument(
        "--photographs",
        type=Path,
        required=True,
        help="folder with ATTRIBUTION.txt and a folder of pictures for each subject",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="share of the usual rows")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    try:
        credits = read_credits(options.emoji, options.photographs)
        rows, images = read_pack(options.emoji)
        find_photographs(options.photographs)  # before the processes start
        jobs = list_jobs(options.share)
        for row, image in make_rows(options.emoji, options.photographs, jobs, options.processes):
            rows.append(row)
            images.append(image)
    except (FileNotFoundError, PackError, ValueError) as error:
        parser.error(str(error))
    write_pack(options.out, rows, images, credits)
    print(f"{len(rows)} rows in {options.out}")


def make_rows(
    emoji: Path, photographs: Path, jobs: list[Job], processes: int
) -> Iterator[tuple[Row, bytes]]:
    """Make rows in order, in this process or in several."""
    if processes == 1:
        inputs = read_inputs(emoji, photographs)
        for job in jobs:
            yield make_row(inputs, job)
        return
    # Started afresh, so that numpy's libraries read the limit: a thread pool in every process makes
    # each small matrix product wait for the others.
    os.environ.update(dict.fromkeys(THREAD_SETTINGS, "1"))
    context = multiprocessing.get_context("spawn")
    arguments = (emoji, photographs)
    with ProcessPoolExecutor(processes, context, _start_worker, arguments) as pool:
        yield from pool.map(_make_in_worker, jobs, chunksize=32)


_inputs: Inputs


def _start_worker(emoji: Path, photographs: Path) -> None:
    global _inputs
    _inputs = read_inputs(emoji, photographs)


def _make_in_worker(job: Job) -> tuple[Row, bytes]:
    return make_row(_inputs, job)


if __name__ == "__main__":
    main()
