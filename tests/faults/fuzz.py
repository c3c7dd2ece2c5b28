"""Fuzz the parsers for as long as you like: python tests/faults/fuzz.py --minutes 10 [TARGET ...].

Every round draws new inputs. The targets are in tests/helpers/fuzz_targets.py; the smallest input
that fails is shown, and the exit status is 1.
"""

import argparse
import sys
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hypothesis import HealthCheck, given, seed, settings

from helpers.fuzz_targets import FUZZ_TARGETS
from lorasmith.core.errors import LorasmithError

ROUND = 500
"""Inputs of a target before the next one has its turn."""


def fuzz(name: str, number: int) -> int:
    """Try one round of inputs; return how many there were."""
    target, count = FUZZ_TARGETS[name], 0

    @seed(number)
    @settings(
        max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(target.inputs)
    def attempt(value: object) -> None:
        nonlocal count
        count += 1
        try:
            target.call(value)
        except LorasmithError:
            return

    attempt()
    return count


def main() -> int:
    """Run rounds of all targets in turn until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(FUZZ_TARGETS)}")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    end = time.monotonic() + 60 * arguments.minutes
    names = arguments.targets or list(FUZZ_TARGETS)
    counts, failed, number = dict.fromkeys(names, 0), set(), arguments.seed
    while time.monotonic() < end and len(failed) < len(names):
        for name in names:
            if name in failed or time.monotonic() >= end:
                continue
            number += 1
            try:
                counts[name] += fuzz(name, number)
            except Exception:  # noqa: BLE001 (whatever it is)
                failed.add(name)
                sys.stderr.write(f"--- {name}, --seed {number - 1}\n{traceback.format_exc()}\n")
    for name, count in counts.items():
        sys.stdout.write(f"{name}: {count:,} inputs{', FAILED' if name in failed else ''}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
