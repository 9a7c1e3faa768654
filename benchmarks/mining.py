"""`align mine` at size: seconds and peak memory with cached scores; texts a second of the sentence encoder.

    python benchmarks/mining.py                       # 2,000 and 10,000 prompts of 16 candidates, 3 lengths of texts
    python benchmarks/mining.py --prompts 2000 --texts 0

The cached scores are made up (random vectors and log-probs under the keys of the real ones): what is measured is
reading rows, finding scores, choosing, writing. Every case runs in a process of its own. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project on the path in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they".split()
)
CANDIDATES = 16
SIZE = 384  # of a vector of all-MiniLM-L6-v2
WORDS_A_TEXT = (8, 40, 150)  # of the texts that are encoded


def write(file: Path, prompts: int) -> None:
    """Prompts with a positive and 16 negatives of 12 to 40 words, all different."""
    draw = random.Random(0)
    with open(file, "w", encoding="utf-8") as out:
        for number in range(prompts):
            texts = [f"{number} {place} " + " ".join(draw.choices(WORDS, k=draw.randint(12, 40)))
                     for place in range(CANDIDATES + 1)]  # fmt: skip
            row = {"prompt": f"Question {number}: {' '.join(draw.choices(WORDS, k=12))}?"}
            out.write(json.dumps(row | {"positives": texts[:1], "negatives": texts[1:]}) + "\n")


def recipe_for(file: Path, folder: Path):
    from align import recipe

    text = (
        f"name: mine\nmodel: {{path: smollm2-135m-instruct, adapter: {{rank: 4}}}}\ndata: {{sources: [{file}]}}\n"
        "mining: {scores: [similarity, logp_per_token], strategy: {name: percentage, share: 0.95}, keep: 4}\n"
        f"objective: {{name: dpo}}\noutput: {folder / 'mined'}\n"
    )
    (folder / "mine.yaml").write_text(text)
    return recipe.load(folder / "mine.yaml")


def fill(file: Path, folder: Path) -> dict:
    """Puts made-up scores of all rows into the cache."""
    import numpy as np

    from align.data.ledger import Ledger
    from align.negatives.mining import Mine
    from align.negatives.score_cache import ScoreCache
    from align.negatives.scorers import Vectors

    draw, cache = np.random.default_rng(0), ScoreCache(folder / "scores.sqlite")
    work = Mine(recipe_for(file, folder), folder, cache, Ledger())
    for scorer in work.scorers:
        for rows in work._batches(scorer.title):
            keys = list({key: None for row in rows for key, _ in scorer.items(row)})
            if isinstance(scorer, Vectors):
                vectors = draw.normal(size=(len(keys), SIZE))
                values = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f2")
            else:
                values = np.stack([-draw.gamma(2.0, 20.0, len(keys)), draw.integers(12, 60, len(keys))], 1)
            cache.put((key, value.tobytes()) for key, value in zip(keys, values, strict=True))
    work.close()
    return {}


def mine(file: Path, folder: Path) -> dict:
    """`align mine` with all scores in the cache."""
    from align.negatives import mine_command

    loaded = recipe_for(file, folder)
    started, spent = time.perf_counter(), time.process_time()
    facts = mine_command.mine(loaded, folder / "scores.sqlite")
    report = facts["report"]
    return {"prompts": report["prompts_with_candidates"], "candidates": report["candidates"],
            "chosen": report["chosen"], "seconds": time.perf_counter() - started,
            "seconds_of_processor": time.process_time() - spent}  # fmt: skip


def encode(file: Path, folder: Path) -> dict:
    """Texts a second of the packaged encoder, by their length."""
    from align import processor
    from align.negatives.encoder import Encoder
    from align.negatives.scorer_models import encoder_folder

    processor.prepare()
    encoder, draw, found = Encoder(encoder_folder(None)), random.Random(0), {}
    encoder.encode([" ".join(WORDS)] * 64)
    for words in WORDS_A_TEXT:
        count = int(os.environ["ALIGN_TEXTS"]) // words
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(words // 2, words * 3 // 2))) for _ in range(count)]
        started, spent = time.perf_counter(), time.process_time()
        encoder.encode(texts)
        seconds, spent = time.perf_counter() - started, time.process_time() - spent
        found[f"{words} words"] = {"texts": count, "texts_a_second": count / seconds,
                                   "cores_had": spent / seconds}  # fmt: skip
    return found


CASES = {case.__name__: case for case in (fill, mine, encode)}


def measured(name: str, file: Path, folder: Path) -> dict:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--case", name, str(file), str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="*", default=[2000, 10_000], help="sizes to mine")
    parser.add_argument("--texts", type=int, default=24_000, help="words to encode of each length; 0: none")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        name, file, folder = given.case
        with contextlib.redirect_stdout(sys.stderr):
            found = CASES[name](Path(file), Path(folder))
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return print(json.dumps(found | {"peak_memory_bytes": usage * 1024}))
    result = {"mine": []}
    for prompts in given.prompts:
        with tempfile.TemporaryDirectory(prefix="align-mining-") as name:
            folder = Path(name)
            write(folder / "rows.jsonl", prompts)
            measured("fill", folder / "rows.jsonl", folder)
            result["mine"].append(measured("mine", folder / "rows.jsonl", folder))
    if given.texts:
        os.environ["ALIGN_TEXTS"] = str(given.texts)
        result["encode"] = measured("encode", Path(), Path())
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
