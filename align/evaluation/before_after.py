"""The evaluation of a run: before, every `eval.every` steps, and after, with three answers to read."""

from __future__ import annotations

import json
from collections.abc import Sequence

from accelerate import PartialState
from transformers import TrainerCallback

from align.data.examples import Prompt
from align.data.tokenize import TokenizedRow
from align.errors import printable
from align.evaluation.heldout import HeldOut
from align.generation import generate
from align.reference import References
from align.run import RunFolder, write_json

_ANSWER_TOKENS = 64


class BeforeAfter(TrainerCallback):
    """Writes `evaluation.json` and prints the table. Every rank takes part, the first one writes and prints."""

    def __init__(
        self,
        run: RunFolder,
        trainer,
        held_out: HeldOut,
        tokenizer,
        *,
        references: References | None,
        every: int,
        num_answers: int,
    ):
        self.run, self.trainer, self.held_out, self.tokenizer = run, trainer, held_out, tokenizer
        self.references = references  # whom the KL is measured against; None: it is not
        self.every, self.state = every, PartialState()
        self.shown = _spread([row for one in held_out.sets if one.role == "negative" for row in one.rows], num_answers)
        self.result: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step > 0:  # resumed: what was before is in the run folder
            self.result = json.loads(self.run.evaluation.read_text(encoding="utf-8"))
            self.result["during"] = [one for one in self.result["during"] if one["step"] <= state.global_step]
            return
        prompts = [_text(row.example.prompt) for row in self.shown]
        self.result = {"before": self._measure(at_start=True), "during": [], "prompts": prompts}
        self.result["answers_before"] = self._answers()
        self._write()

    def on_step_end(self, args, state, control, **kwargs):
        if self.every and state.global_step % self.every == 0 and state.global_step < state.max_steps:
            measured = self._measure(at_start=False)
            self.result["during"].append({"step": state.global_step, **measured})
            self._write()
            if self.state.is_main_process:
                changes = [
                    f"{name} {now['logps'] - self.result['before'][name]['logps']:+.3f}"
                    for name, now in measured.items()
                ]
                print(
                    f"held-out after step {state.global_step}, nat/token: {' · '.join(map(printable, changes))}",
                    flush=True,
                )

    def after(self) -> None:
        """Measures the trained policy, and prints the table and the answers."""
        self.result["after"] = self._measure(at_start=False)
        self.result["answers_after"] = self._answers()
        self._write()
        if self.state.is_main_process and self.held_out.sets:
            print(f"\n{table(self.result['before'], self.result['after'])}\n")
            print(answers_text(self.result["prompts"], self.result["answers_before"], self.result["answers_after"]))
            print(flush=True)

    def _measure(self, *, at_start: bool) -> dict:
        return self.held_out.measure(self.trainer.model_wrapped, self.references, at_start=at_start)

    def _answers(self) -> list[str]:
        """Greedy answers of the policy to the shown prompts."""
        if not self.shown:
            return []
        ids = generate(self.trainer.model, self.tokenizer, [list(row.prompt_ids) for row in self.shown], _ANSWER_TOKENS)
        return [self.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]

    def _write(self) -> None:
        if self.state.is_main_process:
            write_json(self.run.evaluation, self.result)


def table(before: dict[str, dict], after: dict[str, dict]) -> str:
    """The before/after table, in nats a token."""
    lines = [f"{'held-out, mean log-prob in nat/token':<44}{'before':>9}{'after':>9}{'change':>9}{'KL to ref':>11}"]
    for name, then in before.items():
        now = after[name]
        kl = "-" if now["kl"] is None else f"{now['kl']:.4f}"
        numbers = f"{then['logps']:>9.3f}{now['logps']:>9.3f}{now['logps'] - then['logps']:>+9.3f}{kl:>11}"
        lines.append(f"{printable(name):<44}{numbers}")
    return "\n".join(lines)


def answers_text(prompts: Sequence[str], before: Sequence[str], after: Sequence[str]) -> str:
    """Prompts with the answer before and after; control characters of the data are escaped."""
    blocks = []
    for prompt, then, now in zip(prompts, before, after, strict=True):
        blocks.append(f"  prompt  {printable(prompt)}\n  before  {printable(then)}\n  after   {printable(now)}")
    return "\n\n".join(blocks)


def _spread(rows: Sequence[TokenizedRow], count: int) -> list[TokenizedRow]:
    """`count` rows, evenly spread over all: of several kinds of negatives, not all of the first."""
    return [rows[index * len(rows) // count] for index in range(min(count, len(rows)))]


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1][1]
