"""`align negatives repair`: rows in, mended rows out, with the file for people to look at and what it all cost."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from align import precision
from align.data import sources
from align.data.encode import Encoder
from align.data.examples import Example
from align.data.ledger import Ledger
from align.data.tokenize import TokenizedRow
from align.errors import UserError, printable, shorten
from align.generation import load_policy
from align.judges import load as judges_load
from align.negatives import audit, cascade, repair
from align.negatives.degrade_command import load
from align.negatives.features import Features
from align.negatives.pairs import pairs_of
from align.negatives.repair import KEEP, OPEN, Finding
from align.objectives import NEGATIVE, POSITIVE, SAMPLE
from align.recipe import Recipe
from align.run import write_json, write_text


def main(given: argparse.Namespace) -> None:
    """Mends the rows of a recipe, or goes on with it. Raises UserError."""
    loaded, out = load(given.recipe, given.overrides, "repair"), Path(given.out).expanduser()
    decided, how = audit.read(audit.path_of(out)), loaded.repair
    ledger, output, costs = Ledger(), Path(loaded.output), {}
    examples, open_to_repair = read(loaded, out, ledger)
    _tell_dropped(ledger)
    write_text(output / "recipe.yaml", loaded.to_yaml())
    if how.suspects == "margins":
        findings = find(loaded, open_to_repair, output, costs, ledger)
    else:
        findings = [Finding(pair, is_suspect=True) for example in open_to_repair for pair in pairs_of(example)]
    if how.cascade:
        found = {one.name: one for one in judges_load.load(loaded, _no_policy)}
        suspects = [one.pair for one in findings if one.is_suspect]
        said, costs["judges"] = cascade.ask([found[name] for name in how.cascade], suspects, how.sure, output)
        repair.confirm(findings, said, how.sure)
    actions = {one.pair.id: repair.proposal(how, one) for one in findings}
    lines = [
        repair.audit_line(one, actions[one.pair.id])
        for one in findings
        if one.is_suspect and (actions[one.pair.id] != KEEP or one.pair.id in decided)
    ]
    honoured = {pair: line["decision"] for pair, line in decided.items() if pair in actions}
    actions |= honoured
    rows = list(_rows(examples, findings, actions))
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    audit.write(audit.path_of(out), lines, decided)
    facts = {
        "rows": len(examples), "rows_held_out": len(examples) - len(open_to_repair), "rows_left": len(rows),
        "dropped": ledger.as_dict()["dropped"], **repair.tally(findings, actions),
        "decisions_honoured": len(honoured), "decisions_on_other_rows": len(decided) - len(honoured), "cost": costs,
    }  # fmt: skip
    write_json(out.with_name(f"{out.name}.json"), facts | {"repair": dataclasses.asdict(how)})
    _tell(out, facts, len(lines))


def find(recipe: Recipe, examples: Sequence[Example], folder: Path, costs: dict, ledger: Ledger) -> list[Finding]:
    """The pairs of the rows with their cross-fitted margins. Raises UserError where there are too few."""
    began, policy, own = time.monotonic(), load_policy(recipe, recipe.model.path), Ledger()
    encoder = Encoder(recipe, policy.tokenizer, recipe.build_objective())
    rows = {id(one): row for one in examples if (row := _encoded(encoder, one, own)) is not None}
    _tell_dropped(own)
    ledger.merge(own)
    in_bf16 = precision.choose(recipe.train.precision).name == precision.BF16
    features = Features(
        policy, folder / "features", max_length=recipe.data.max_length,
        tokens_at_once=recipe.train.tokens_per_device, in_bf16=in_bf16,
    )  # fmt: skip
    vectors = dict(zip(rows, features.of(list(rows.values())), strict=True))
    costs["features_seconds"], began = round(time.monotonic() - began, 1), time.monotonic()
    pairs = [pair for example in examples if id(example) in rows for pair in pairs_of(example)]
    found = repair.by_margins(recipe.repair, pairs, [vectors[id(pair.example)] for pair in pairs], recipe.train.seed)
    costs["probes_seconds"] = round(time.monotonic() - began, 1)
    return found


def read(recipe: Recipe, out: Path, ledger: Ledger) -> tuple[list[Example], list[Example]]:
    """All rows of the recipe, and those that may be mended. Raises UserError.

    Rows that are held out are to measure by: they are neither learned from nor mended.
    """
    examples, open_to_repair = [], []
    for source in recipe.data.sources:
        if any(out.resolve() == file.resolve() for file in sources.files(source.path)):
            raise UserError("--out", f"{shorten(str(out))} is one of the files that are read", "name another file")
        rows = sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=ledger)
        examples += rows
        is_builtin = source.path.startswith(sources.BUILTIN)
        open_to_repair += rows if is_builtin else sources.split_holdout(rows, recipe.eval.holdout)[0]
    if not any(True for example in open_to_repair for _ in pairs_of(example)):
        what = "no row that is not held out has a positive and a negative"
        raise UserError("data.sources", what, "give rows that have both")
    return examples, open_to_repair


def _encoded(encoder: Encoder, example: Example, ledger: Ledger) -> TokenizedRow | None:
    """The row in tokens, with all its responses; None for one that has no pair or loses a response."""
    if not any(True for _ in pairs_of(example)):
        return None
    row = encoder.tokens(example, {POSITIVE, NEGATIVE, SAMPLE}, ledger)
    if row is not None and len(row.responses) != len(example.responses):
        ledger.drop("row not looked at: the chat template hides where an answer begins", example.place)
        return None
    return row


def _rows(examples: Sequence[Example], findings: Sequence[Finding], actions: dict[str, str]):
    """The mended rows, in order."""
    doing: dict[int, dict[int, tuple[str, Finding]]] = {}
    for one in findings:
        action = actions[one.pair.id]
        if action not in (KEEP, OPEN):
            doing.setdefault(id(one.pair.example), {})[one.pair.index] = action, one
    for example in examples:
        row = repair.mended(example, doing.get(id(example), {}))
        if row is not None:
            yield row


def _no_policy() -> None:
    raise AssertionError("no judge of whole answers asks for the policy")


def _tell_dropped(ledger: Ledger) -> None:
    for reason, count in sorted(ledger.dropped.items()):
        print(printable(f"{reason}: {count}"), flush=True)


def _tell(out: Path, facts: dict, to_look_at: int) -> None:
    print(f"{out}: {json.dumps(facts)}")
    if to_look_at:
        print(f"{audit.path_of(out)}: {to_look_at} pairs to look at; write decisions into it and run again")
    else:
        print("no label is called wrong")
