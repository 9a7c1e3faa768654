"""What a worker process does: `python -m benchmarks.workers KIND OPTIONS`, started by `benchmarks.gate.Worker`."""

from __future__ import annotations

import json
import sys

from benchmarks import scoring, training
from benchmarks.gate import Gate

KINDS = {
    "ours": training.ours,
    "trl": training.trl,
    "ours_reference": scoring.ours,
    "trl_reference": scoring.trl,
    "sampler": scoring.sampler,
    "generate": scoring.generate,
}


def main() -> None:
    gate = Gate()
    KINDS[sys.argv[1]](gate, **json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
