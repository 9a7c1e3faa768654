"""What a job writes into its run folder beside metrics and weights, and beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import PartialState

from align import likelihood_ratio
from align.data.ledger import Ledger
from align.data.load import Rows
from align.data.load_streams import Streams
from align.data.nat import inference_label
from align.data.steps import Steps
from align.data.stream import StreamFeed
from align.objectives import Objective
from align.provenance import environment
from align.recipe import Recipe
from align.reference import References
from align.run import HEADS_FILE, RunFolder, write_json, write_text


def start_run_folder(
    run: RunFolder, recipe: Recipe, rows: Rows | Streams, args, checkpoint: Path | None, start_hash: str | None,
    references: References | None,
) -> None:  # fmt: skip
    """Writes what is known before the first step; a resumed run keeps what the start wrote."""
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] if checkpoint else 0
    if not PartialState().is_main_process:
        return
    if checkpoint:
        run.begin_as(checkpoint)
        print(f"going on from {checkpoint}, after step {step}", flush=True)
    else:
        hashes = references.hashes if references else {}
        write_json(run.environment, environment("bf16" if args.bf16 else "fp32", start_hash, hashes))
    write_text(run.recipe, recipe.to_yaml())
    write_json(run.data, rows.ledger.as_dict())
    run.forget_after(step)


def write_data(run: RunFolder, rows: Rows | Streams, steps: Steps) -> None:
    """`data.json`: what became of the rows, those that were streamed included."""
    ledger, retained = steps.feed.everything(rows.ledger), Ledger()
    if isinstance(steps.retain, StreamFeed):
        ledger.merge(steps.retain.everything(retained), "retain: ")
    epochs = {title: round(number, 3) for title, number in steps.feed.epochs().items()}
    if PartialState().is_main_process:
        write_json(run.data, ledger.as_dict() | {"epochs": epochs})


def how_to_use(recipe: Recipe, objective: Objective) -> dict[str, str]:
    """file name -> text: what whoever uses the saved weights must know beside them.

    What NAT puts in front of the user's first message whenever the model is used; which adapters make up a ratio.
    """
    notes = {}
    if recipe.data.nat:
        notes["prompt_prefix.txt"] = inference_label(recipe.data.nat) + "\n"
    if objective.adapters:
        notes[HEADS_FILE] = likelihood_ratio.describe(recipe.model, list(objective.adapters.values()))
    return notes
