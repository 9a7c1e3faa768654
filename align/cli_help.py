"""What `align --help` and `align VERB --help` say beside the options: an order to read them in, and examples."""

from __future__ import annotations

import argparse

OVERVIEW = """\
a run, in the order in which one is made:
  align check recipes/d2o.yaml           are its keys right?
  align doctor recipes/d2o.yaml          are its rows?
  align preview recipes/d2o.yaml         what does the model see of them?
  accelerate launch align/train.py recipes/d2o.yaml
  align evaluate runs/d2o                what has changed?  runs/d2o/report.html shows it

align COMMAND --help has examples of each. Exit codes: 0 done, 1 it failed or found faults, 2 something you can mend."""

EXAMPLES = {
    "check": ("recipes/*.yaml", "recipes/d2o.yaml model.path=Qwen/Qwen2.5-0.5B-Instruct", "--list"),
    "plan": (
        "recipes/d2o.yaml",
        "recipes/dpo.yaml --gpus 8 --gpu-memory 80 --zero 3",
        "recipes/dpo.yaml --no-probe --json",
    ),
    "train": ("recipes/d2o.yaml", "recipes/d2o.yaml data.sources=[my.jsonl] output=runs/mine train.resume=true"),
    "doctor": (
        "recipes/dpo.yaml",
        "rows.jsonl --eval heldout.jsonl --tokenizer smollm2-135m-instruct",
        "rows.jsonl --fix repaired.jsonl",
        "recipes/dpo.yaml --flips --json",
    ),
    "preview": ("recipes/dpo.yaml --rows 2", "recipes/dpo.yaml data.max_length=256 --html page.html"),
    "ref": ("build recipes/dpo.yaml", "stat", "verify", "export ~/.cache/align/references all.refs"),
    "ref build": ("recipes/dpo.yaml", "recipes/dpo.yaml reference.store=refs"),
    "ref stat": ("", "refs"),
    "ref verify": ("", "refs"),
    "ref export": ("refs all.refs",),
    "ref import": ("all.refs refs",),
    "evaluate": (
        "runs/likra --data builtin:pairs",
        "runs/likra --data test.jsonl --tune tune.jsonl --json",
        "runs/likra runs/other --data test.jsonl --curve --plot curve.png",
    ),
    "report": ("runs/d2o",),
    "compare": ("runs/dpo runs/npo", "runs/* --out compared.html", "runs/dpo runs/npo --json"),
    "merge": (
        "runs/npo --sweep --data test.jsonl",
        "runs/npo --interpolate 0.6 --out runs/npo-0.6",
        "runs/npo --interpolate 0.6 --fisher --out runs/npo-0.6",
    ),
    "repair": (
        "runs/dpo --data yesno.jsonl --out runs/repaired",
        "MODEL --data yesno.jsonl --out runs/repaired --heads 4",
    ),
    "mine": ("recipes/mine.yaml", "recipes/mine.yaml mining.keep=2 output=runs/two"),
    "negatives": ("near-miss good.jsonl --out rows.jsonl", "degrade recipes/degrade.yaml"),
    "negatives near-miss": (
        "good.jsonl --out rows.jsonl",
        "good.jsonl --out rows.jsonl --kinds number,operator --n 3 --verifier numeric",
    ),
    "negatives degrade": ("recipes/degrade.yaml", "recipes/degrade.yaml degrade.condition=evidence output=runs/blind"),
    "negatives repair": ("recipes/repair.yaml --out clean.jsonl",),
    "sample": ("recipes/bcpg_nsa.yaml", "recipes/bcpg_nsa.yaml sampling.k=16 output=runs/more"),
    "judge": ("recipes/bcpg_nsa.yaml", "recipes/bcpg_nsa.yaml --score steps.jsonl --rows 100"),
    "iterate": ("recipes/bcpg_nsa.yaml --rounds 2", "recipes/bcpg_nsa.yaml --seeds 3 output=runs/three"),
    "completion": ("bash > ~/.local/share/bash-completion/completions/align", "zsh > ~/.zfunc/_align"),
}
_NAMES_FILES = (
    "recipe", "recipes", "what", "file", "folder", "run_folder", "runs", "data", "tune", "fix", "html", "plot", "score",
    "model", "out", "source", "eval", "flips", "fisher", "lm_eval_path", "zero",
)  # fmt: skip


def explain(parser: argparse.ArgumentParser) -> None:
    """Gives every command below `parser` its examples. Raises KeyError for one that has none."""
    parser.epilog, parser.formatter_class = OVERVIEW, argparse.RawDescriptionHelpFormatter
    for name, command in commands_of(parser):
        lines = [f"  {' '.join(['align', name, words]).rstrip()}" for words in EXAMPLES[name]]
        command.epilog = "\n".join(["examples:", *lines])
        command.formatter_class = argparse.RawDescriptionHelpFormatter


def commands_of(parser: argparse.ArgumentParser, before: str = "") -> list[tuple[str, argparse.ArgumentParser]]:
    """(words that name it, parser) of every command, those of commands included."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                words = f"{before} {name}".strip()
                found += [(words, command), *commands_of(command, words)]
    return found


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script that completes the commands, their options and the names of files."""
    import shtab

    for _, command in commands_of(parser):
        for action in command._actions:
            if action.dest in _NAMES_FILES and action.nargs != 0:  # --flips of doctor takes no name
                action.complete = shtab.FILE
    return shtab.complete(parser, shell=shell)
