"""The command `align doctor`: what it looks at, the table it prints, and the file that --fix writes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from align.data import doctor, sources
from align.data.doctor import Report
from align.data.doctor_checks import CHECKS
from align.data.examples import Example, to_row
from align.errors import FAILED, UserError, has_colour, printable, shorten

_MARKS = {"fault": ("FAULT  ", "1;31"), "warning": ("warning", "33"), "note": ("note   ", "2")}  # and their colours
_MOST_SCORED = 2000  # pairs that the model scores


def main(
    words: list[str], *, evaluated: list[str], tokenizer: str | None, flips: bool, as_json: bool, fix: str | None
) -> int:
    """Looks at a recipe's rows, or at sources named as such. Returns the exit code: 1 if a fault was found."""
    recipe, given = _what(words)
    if recipe is None and flips:
        raise UserError("command line", "--flips scores with the model of a recipe", "name a recipe")
    if recipe is not None and (tokenizer or evaluated):
        what = "--tokenizer and --eval are for sources; the recipe names its own"
        raise UserError("command line", what, "leave them out")
    encoder, limit, holdout = None, None, 0.0
    also = [(path, "train") for path in evaluated]
    if recipe is not None:
        from align import models

        encoder, limit, holdout = models.load_tokenizer(recipe.model), recipe.data.max_length, recipe.eval.holdout
        also = [(source.path, source.split) for source in recipe.eval.sources]
    elif tokenizer:
        from align import models
        from align.recipe import Model

        encoder = models.load_tokenizer(Model(path=tokenizer))
    for path, split in [*given, *also]:
        problem = sources.check(path, split)
        if problem:
            raise UserError("command line", *problem)
    with _writer(fix, [path for path, _ in given]) as write:
        report = doctor.examine(
            given, tokenizer=encoder, max_length=limit, evaluated=also, holdout=holdout, fix=write
        )  # fmt: skip
    if flips:
        _look_for_flips(recipe, encoder, given, report)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        print(table(report, shutil.get_terminal_size((100, 24)).columns, has_colour(sys.stdout)))
    if fix:
        done = ", ".join(f"{name}: {count}" for name, count in sorted(report.fixed.items()) if count) or "nothing to do"
        print(f"{shorten(fix, 100)}: {done}", file=sys.stderr)
    return FAILED if report.has_faults else 0


def _what(words: list[str]) -> tuple[object | None, list[doctor.Source]]:
    """(recipe or None, its training sources or those named)."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in overrides]
    recipes = [name for name in names if name.endswith((".yaml", ".yml"))]
    if not names:
        raise UserError("command line", "names nothing to look at", "align doctor RECIPE, or align doctor rows.jsonl")
    if not recipes:
        if overrides:
            raise UserError("command line", f"{overrides[0]} overrides a recipe, but none is named", "leave it out")
        return None, [(name, sources.default_split(name)) for name in names]
    if len(names) > 1:
        raise UserError("command line", "takes one recipe, or sources", "align doctor RECIPE [key=value ...]")
    from align import recipe

    loaded = recipe.load(recipes[0], overrides)
    return loaded, [(source.path, source.split) for source in loaded.data.sources]


@contextlib.contextmanager
def _writer(out: str | None, read: list[str]) -> Iterator:
    """A function that writes a record to the file, which appears whole or not at all; None without a file."""
    if out is None:
        yield None
        return
    path = Path(out).expanduser()
    if any(path.resolve() == file.resolve() for name in read for file in sources.files(name)):
        raise UserError("--fix", f"{shorten(out)} is one of the files that are read", "name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:

            def write(example: Example) -> None:
                file.write(json.dumps(to_row(example), ensure_ascii=False) + "\n")

            yield write
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _look_for_flips(recipe, tokenizer, given: list[doctor.Source], report: Report) -> None:
    """Adds the pairs that the model finds flipped; of the first rows, scored in batches."""
    from align.data.encode import Encoder
    from align.data.flips import likely_flipped
    from align.data.ledger import Ledger
    from align.data.load import by_role
    from align.objectives import NEGATIVE, POSITIVE

    encoder, rows = Encoder(recipe, tokenizer, recipe.build_objective()), []
    for path, split in given:
        for _, example in doctor.examples(path, split):
            if isinstance(example, Example) and len(by_role(example)) == 2 and len(rows) < _MOST_SCORED:
                row = encoder.tokens(example, {POSITIVE, NEGATIVE}, Ledger())
                if row is not None and {one.role for one in row.responses} == {POSITIVE, NEGATIVE}:
                    rows.append(row)
    margins = _margins(recipe, rows)
    found, threshold = likely_flipped(margins)
    for index in found:
        report.add("likely flipped", f"{rows[index].example.place} ({margins[index]:+.2f} nat a token)")
    if found:
        report.details["likely flipped"] = f"of {len(rows):,} pairs scored; threshold -{threshold:.2f} nat a token"


def _margins(recipe, rows: Sequence) -> list[float]:
    """Of each tokenised row: mean log-prob a token of its positives minus that of its negatives, under the model.

    `rows` have a positive and a negative each (`TokenizedRow`). The recipe's model is loaded.
    """
    import torch

    from align import models, precision, processor
    from align.data.collate import collate
    from align.data.layout import PADDED
    from align.data.share import share_out
    from align.objectives import NEGATIVE, POSITIVE
    from align.scoring.logprobs import response_logps

    processor.prepare()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    in_bf16 = precision.choose(recipe.train.precision).name == precision.BF16
    model = models.load_model(recipe.model, dtype=torch.bfloat16 if in_bf16 else torch.float32).to(device).eval()
    (groups,) = share_out(rows, world=1, tokens_per_device=recipe.train.tokens_per_device, layout=PADDED)
    margins: dict[int, float] = {}
    for group in groups:
        batch = collate(group, 0, PADDED).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            means = response_logps(model, batch).sum(-1) / batch.mask.sum(-1)  # (N,)
        for index, row in enumerate(group):
            of_role = [means[(batch.prompt == index) & (batch.role == role)].mean() for role in (POSITIVE, NEGATIVE)]
            margins[id(row)] = (of_role[0] - of_role[1]).item()
    return [margins[id(row)] for row in rows]


def table(report: Report, width: int = 100, in_colour: bool = False) -> str:
    """The report for a terminal of so many columns. What colour says, words say, too."""
    roles = ", ".join(f"{count:,} {role}s" for role, count in sorted(report.responses.items()))
    lines = _wrapped(f"{report.rows:,} rows, {roles or 'no response'}", width, "")
    if report.lengths:
        lines += _wrapped(f"lengths: {doctor.length_words(report.lengths)}", width, "")
    order = {severity: number for number, severity in enumerate(_MARKS)}
    for name in sorted(report.counts, key=lambda name: order[CHECKS[name].severity]):
        mark, colour = _MARKS[CHECKS[name].severity]
        share = f" ({report.counts[name] / report.rows:.1%} of the rows)" if name in report.of_rows else ""
        head = f"{name}: {report.counts[name]:,}{share}"
        lines += ["", f"\033[{colour}m{mark}\033[0m  {head}" if in_colour else f"{mark}  {head}"]
        for told in _told(report, name):
            lines += _wrapped(told, width)
    if not report.counts:
        lines += ["", "nothing found"]
    return "\n".join(lines)


def _told(report: Report, name: str) -> Iterator[str]:
    """What there is to say of a finding, a paragraph each: its size, its meaning, its first places."""
    check, count, places = CHECKS[name], report.counts[name], report.places[name][:3]
    if name in report.details:
        yield printable(report.details[name])
    yield check.what + (f"; {check.fix}" if check.fix else "")
    if name in report.of_rows:
        yield from map(printable, places)
        if count > len(places):
            yield f"and {count - len(places):,} more"


def _wrapped(text: str, width: int, indent: str = " " * 9) -> list[str]:
    """A paragraph; a path is never broken, so that it can be copied."""
    return textwrap.wrap(
        text, max(width, 40), initial_indent=indent, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
