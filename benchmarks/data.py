"""Streaming, resuming and `align doctor` at size: memory, seconds, rows a second.

    python benchmarks/data.py                      # 1 GB, a million rows, 60,000 rows: some minutes
    python benchmarks/data.py --gigabytes 1 10     # the memory of reading 1 GB and 10 GB; needs that much disk

Every case runs in a process of its own, whose peak memory is what is printed. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # run as a file: the project on the path in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they".split()
)


def row(draw: random.Random, number: int, words: int) -> str:
    prompt, good, bad = (" ".join(draw.choices(WORDS, k=words)) for _ in range(3))
    return json.dumps({"prompt": f"{number} {prompt}?", "positives": [f"{good}."], "negatives": [f"{bad}."]}) + "\n"


def write(file: Path, *, rows: int = 0, size: int = 0, words: int = 60) -> int:
    """Rows of like length, all different, until there are so many or so many bytes; how many there are."""
    draw, number, written = random.Random(0), 0, 0
    block = [row(draw, 0, words).split(" ", 2)[2] for _ in range(2000)]
    with open(file, "w", encoding="utf-8") as out:
        while number < rows or written < size:
            written += out.write(f'{{"prompt": "{number} {block[number % 2000]}')
            number += 1
    return number


def recipe_for(file: Path, folder: Path, max_steps: str = "null", holdout: float = 0.1):
    """A recipe for the embedded model that streams the file; a tenth of its prompts is held out, and counted."""
    from align import recipe

    text = (
        f"name: data\nmodel: {{path: smollm2-135m-instruct, adapter: {{rank: 4}}}}\n"
        f"data: {{sources: [{file}], streaming: always}}\nobjective: {{name: dpo}}\n"
        f"train: {{prompts_per_step: 16, max_steps: {max_steps}}}\n"
        f"eval: {{sources: [], holdout: {holdout}, generate: 0}}\noutput: {folder / 'run'}\n"
    )
    (folder / "data.yaml").write_text(text)
    return recipe.load(folder / "data.yaml")


def feed_of(file: Path, folder: Path):
    from align import models
    from align.data.load_streams import Streams

    loaded = recipe_for(file, folder)
    return Streams(loaded, models.load_tokenizer(loaded.model), loaded.build_objective()).feed(loaded)


def untokenised(feed) -> None:
    """Rows are read, parsed and shuffled, but not tokenised: 10 GB would take hours of that."""
    from align.data.tokenize import TokenizedResponse, TokenizedRow

    empty = TokenizedResponse((1,), 1)
    for lane in feed.channels[0].lanes:
        lane.encode = lambda example, ledger: iter([TokenizedRow((1,), (empty,), example)])


def stream(file: Path, folder: Path) -> dict:
    """All rows of a file, once."""
    feed = feed_of(file, folder)
    tokenised = time.perf_counter()
    for step in range(20):
        feed.rows(step)
    tokenised = 20 * 16 / (time.perf_counter() - tokenised)
    untokenised(feed)
    started, step = time.perf_counter(), 20
    while feed.channels[0].epoch == 0:
        feed.rows(step)
        step += 1
    rows, seconds = (step - 20) * 16, time.perf_counter() - started
    return {"bytes": file.stat().st_size, "rows_per_second_tokenised": tokenised,
            "rows_per_second_read_and_shuffled": rows / seconds}  # fmt: skip


def train(file: Path, folder: Path) -> dict:
    """Some steps of training: the share of a step that goes into reading, shuffling and tokenising its rows."""
    from align import job
    from align.data.steps import Steps

    spent, real = [], Steps.__getitem__

    def timed(steps, number):
        started = time.perf_counter()
        found = real(steps, number)
        spent.append(time.perf_counter() - started)
        return found

    Steps.__getitem__ = timed
    with contextlib.redirect_stdout(sys.stderr):
        job.train(recipe_for(file, folder, max_steps="6"))
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line["tokens"] / line["tokens_per_second"] for line in lines]  # forward and backward
    return {"seconds_of_the_first_step_for_its_rows": spent[0], "seconds_a_step_for_its_rows": median(spent[1:]),
            "seconds_a_step_for_training": median(trained[1:])}  # fmt: skip


def save(file: Path, folder: Path) -> dict:
    """Goes to row 1,000,000 and writes the state there, as a checkpoint has it."""
    feed = feed_of(file, folder)
    encoders = [lane.encode for lane in feed.channels[0].lanes]
    untokenised(feed)
    for step in range(1_000_000 // 16):
        feed.rows(step)
    (folder / "state.json").write_text(json.dumps(feed.state()))
    for lane, encode in zip(feed.channels[0].lanes, encoders, strict=True):
        lane.encode = encode
    following = [row.example.prompt for row in feed.rows(1_000_000 // 16)]
    (folder / "following.json").write_text(json.dumps(following))
    return {"state_bytes": (folder / "state.json").stat().st_size}


def resume(file: Path, folder: Path) -> dict:
    """Opens the file and goes on at row 1,000,000, up to the first step's tokens."""
    started = time.perf_counter()
    feed = feed_of(file, folder)
    feed.restore(json.loads((folder / "state.json").read_text()), 1_000_000 // 16, True)
    rows = feed.rows(1_000_000 // 16)
    seconds = time.perf_counter() - started
    if [row.example.prompt for row in rows] != json.loads((folder / "following.json").read_text()):
        raise SystemExit("the rows behind the resume are other ones")
    return {"seconds": seconds}


def doctor(file: Path, folder: Path) -> dict:
    """`align doctor RECIPE` on the file, with the tokenizer."""
    recipe_for(file, folder, holdout=0.0)  # every row has near-duplicates here: 2000 texts under many numbers
    started = time.perf_counter()
    command = [sys.executable, "-m", "align.cli", "doctor", str(folder / "data.yaml"), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.stdout:
        raise SystemExit(result.stderr[-2000:])
    return {"rows": json.loads(result.stdout)["rows"], "seconds": time.perf_counter() - started}


CASES = {case.__name__: case for case in (stream, train, save, resume, doctor)}


def measured(name: str, file: Path, folder: Path) -> dict:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--case", name, str(file), str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.25, 1.0], help="sizes to stream")
    parser.add_argument("--folder", type=Path, help="where the files are written; default: a temporary folder")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        name, file, folder = given.case
        found = CASES[name](Path(file), Path(folder))
        usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return print(json.dumps(found | {"peak_memory_bytes": usage * 1024}))
    with tempfile.TemporaryDirectory(prefix="align-data-", dir=given.folder) as name:
        folder, result = Path(name), {"stream": []}
        file = folder / "rows.jsonl"
        for gigabytes in given.gigabytes:
            rows = write(file, size=int(gigabytes * 1e9))
            result["stream"].append({"rows": rows, **measured("stream", file, folder)})
        result["train"] = measured("train", file, folder)
        write(file, rows=1_300_000, words=12)
        result["resume_at_row_1000000"] = measured("save", file, folder) | measured("resume", file, folder)
        write(file, rows=60_000)
        result["doctor"] = measured("doctor", file, folder)
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
