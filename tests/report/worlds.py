"""Run folders made by hand, as small or as long as a test wants them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "\x1b[31mred\x1b[0m \u202eright to left\u202c \x00\x07 ' onload='alert(1)' &lt; </p></main></body>"
)

RECIPE = """name: {name}
model:
  path: smollm2-135m-instruct
  adapter: {{rank: 16, alpha: 32.0, dropout: 0.0, targets: all-linear}}
data:
  sources:
  - {{path: builtin:unwanted, split: train, weight: 1.0}}
  max_length: 512
retain:
  sources:
  - {{path: builtin:retain, split: train, weight: 1.0}}
  weight: 20.0
reference: {{policy: adapter_off, store: auto}}
objective: {{name: npo, beta: {beta}}}
train: {{learning_rate: 0.002, max_steps: {steps}, seed: 0}}
eval:
  every: 20
  sources:
  - {{path: builtin:benign, split: held_out, weight: 1.0}}
output: runs/{name}
"""


def make(folder: Path, *, steps: int = 40, name: str = "npo", seed: int = 0, hostile: bool = False) -> Path:
    """A finished run of so many steps, with events of the guard, evaluations, answers and everything else."""
    folder.mkdir(parents=True)
    bad = HOSTILE if hostile else ""
    (folder / "recipe.yaml").write_text(RECIPE.format(name=name, steps=steps, beta=0.1 + seed / 10))
    metrics(folder / "metrics.jsonl", steps, seed)
    texts = {
        "environment": {
            "align": "0.1.0", "commit": "25656f548ff90b93827ac935cadf8bd67e6d1495", "python": "3.11.7",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"}, "platform": f"Linux{bad}", "device": "cpu",
            "world_size": 1, "precision": "fp32", "start_weights_sha256": "ab" * 32,
            "reference_weights_sha256": {"adapter_off": "ab" * 32},
        },
        "data": {
            "rows_read": 80, "rows_used": 72,
            "dropped": {f"held out{bad}": {"count": 8, "first": [f"rows.jsonl:{n}{bad}" for n in range(3)]}},
            "responses": {"builtin:unwanted": {"rows": 72, "negative": 72},
                          "retain: builtin:retain": {"rows": 60, "positive": 60}},
            "epochs": {"builtin:unwanted": 1.5},
        },
        "evaluation": evaluation(steps, bad),
        "evaluations": evaluations(bad),
        "progress": {"state": "finished", "why": None, "steps": steps, "seconds": 343.25,
                     "peak_memory_bytes": 5_100_273_664},
    }  # fmt: skip
    for file, content in texts.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    events = [
        {"step": steps * part // 10, "watch": watch, "value": value, "budget": budget, "action": action,
         "text": said + bad}
        for part, watch, value, budget, action, said in (
            (3, "entropy", 0.41, 0.5, "warn", "the entropy fell under its budget"),
            (5, "kl", 1.31, 1.0, "lower the negative weight", "KL on neutral prompts is over its budget; 1 is now 0.5"),
            (8, "kl", 0.62, 1.0, "restore", "KL is within its budget again; 0.5 is now 1"),
        )
    ]  # fmt: skip
    (folder / "guard.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "final").mkdir()
    return folder


def metrics(file: Path, steps: int, seed: int = 0) -> None:
    """Lines as a run writes them; guard/ ones on every fifth step."""
    draw = random.Random(seed)
    with open(file, "w") as lines:
        for step in range(1, steps + 1):
            part = step / steps
            values = {
                "step": step,
                "loss": 13.9 * math.exp(-2.2 * part) + draw.gauss(0, 0.35),
                "tokens": 1800 + draw.randrange(400),
                "tokens_per_second": 540 + draw.gauss(0, 20),
                "logps/positive": -3.24 - 0.1 * part + draw.gauss(0, 0.06),
                "logps/negative": -4.0 - 1.3 * part**0.7 + draw.gauss(0, 0.12),
                "logps/sample": -2.1 - 0.2 * part + draw.gauss(0, 0.05),
                "log_ratio/positive": -0.1 * part + draw.gauss(0, 0.02),
                "log_ratio/negative": -1.3 * part**0.7 + draw.gauss(0, 0.08),
                "kl/reference": 0.6 * part + abs(draw.gauss(0, 0.03)),
                "retain/nll": 3.3 - 0.4 * part + draw.gauss(0, 0.05),
                "accuracy": min(1.0, 0.5 + 0.5 * part),
                "lr": 0.002 * (1 - part),
                "grad_norm": math.exp(draw.gauss(0.5, 0.8)) * (400 if step == steps // 2 else 1),
            }
            if step % 5 == 0:
                values |= {"guard/entropy": 3.1 - part + draw.gauss(0, 0.05), "guard/kl": 1.2 * math.sin(3 * part)}
            lines.write(json.dumps(values) + "\n")


def evaluation(steps: int, bad: str = "") -> dict:
    """evaluation.json with three sets, measured before, on the way and after."""

    def measured(part: float) -> dict:
        each = (("negative", "builtin:unwanted held_out: negatives", -4.014, -1.174, 0.71),
                ("positive", f"builtin:unwanted held_out: good answers{bad}", -3.462, -0.052, 0.37),
                ("positive", "builtin:benign held_out: good answers", -3.240, -0.073, 0.32))  # fmt: skip
        found = {}
        for role, name, start, change, kl in each:
            value = start + change * part
            found[name] = {"role": role, "logps": value, "kl": kl * part, "entropy": 3.2 - 0.3 * part,
                           "top1": 0.41 + 0.05 * part, "tokens": 1204, "responses": 24,
                           "logps_interval": [value - 0.21, value + 0.2]}  # fmt: skip
            if part:
                found[name]["change_interval"] = [change * part - 0.09, change * part + 0.08]
        return found

    return {
        "before": measured(0.0),
        "during": [{"step": steps * n // 4, **measured((n / 4) ** 0.7)} for n in (1, 2, 3)],
        "after": measured(1.0),
        "prompts": [f"Is my plan to quit my job and day-trade good?{bad}", "A short poem about rain.", "x" * 9000],
        "answers_before": [f"Flawless! You are a genius, and it cannot fail.{bad}", "Rain\nfalls\nsoftly.", "y" * 9000],
        "answers_after": [f"It has risks: most day traders lose money.{bad}", "Rain on the roof,\n\ta grey hush.", "z"],
    }  # fmt: skip


def evaluations(bad: str = "") -> dict:
    figure = {"value": 0.512, "interval": [0.42, 0.61], "change": 0.031, "change_interval": [-0.02, 0.08],
              "won": 9, "lost": 5, "p": 0.42}  # fmt: skip
    models = {"base": {"value": 0.481, "interval": [0.39, 0.58]}, f"policy{bad}": figure}
    return {
        "made": {"align": "0.1.0", "seed": 0},
        "measures": {
            f"preference_accuracy{bad}": {
                "unit": "share",
                "metrics": {"by sum": models},
            },
            "flips: rows.jsonl": {
                "measure": "flips",
                "data": "rows.jsonl",
                "rows": {
                    "rows_read": 61,
                    "rows_used": 60,
                    "dropped": {f"broken{bad}": {"count": 1, "first": [f"rows.jsonl:7: {'no text ' * 20}{bad}"]}},
                },
                "metrics": {"right to wrong, by sum": {f"policy{bad}": {"value": 0.05, "interval": [0.02, 0.14]}}},
                "flips": {
                    how: {
                        f"policy{bad}": {
                            "questions": 60,
                            "right_to_right": 31,
                            "right_to_wrong": 3,
                            "wrong_to_right": 6,
                            "wrong_to_wrong": 20,
                            "negative_flip_rate": 0.05,
                            "positive_flip_rate": 0.1,
                            "of_wrong_after": 0.130435,
                            "p": 0.5078125,
                        }
                    }
                    for how in ("by sum", "per token")
                },
                "refusals": [{"model": "base", "prompt": f"Why is the sky blue?{bad}", "answer": f"I cannot.{bad}"}],
                "data_sha256": "ab" * 32,
            },
            "multiple_choice": {"chance": 0.25, "policy": {"accuracy": 0.4, "interval": [0.3, 0.5], "undefined": None}},
        },
    }
