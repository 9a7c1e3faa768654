"""What `align doctor` finds in a row, and the row without it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from align.data import doctor_checks as checks
from align.data.examples import Example, Response
from align.data.templates import TemplateRefuses, turn_end
from align.data.tokenize import encode_prompt, encode_response, has_double_bos, lacks_bos

if TYPE_CHECKING:
    from align.data.doctor import Report, Survey


class RowChecks:
    """Looks at rows one after the other; remembers which it has seen."""

    def __init__(self, report: Report, survey: Survey, tokenizer, max_length: int | None):
        self.report, self.survey, self.tokenizer, self.max_length = report, survey, tokenizer, max_length
        self.seen: set[int] = set()
        self.special = list(tokenizer.all_special_tokens) if tokenizer is not None else []
        self.ends = {tokenizer.eos_token} if tokenizer is not None else set()
        if tokenizer is not None and tokenizer.chat_template is not None:
            self.ends |= {turn_end(tokenizer).strip()} - {""}
        self.lacks_end = tokenizer is not None and tokenizer.chat_template is not None and not turn_end(tokenizer)

    def look(self, example: Example, *, is_held_out: bool) -> Example | None:
        """Adds what is wrong to the report. Returns the repaired row; None: it should go."""
        self.place, fixed = example.place, self.report.fixed
        if checks.row_key(example) in self.seen:
            self.report.add("duplicate row", self.place)
            fixed["duplicates left out"] += 1
            return None
        self.seen.add(checks.row_key(example))
        repaired = self._texts(example)
        repaired = self._roles(repaired)
        has_room = self._tokens(example) if self.tokenizer is not None else True
        near = None if is_held_out else self.survey.held_out.match(example)
        if near is not None:
            self.report.add("near-duplicate of a held-out row", f"{self.place} ({near})")
            fixed["near-duplicates of held-out rows left out"] += 1
            return None
        if not has_room:
            fixed["rows without room for a response left out"] += 1
            return None
        if not repaired.responses:
            fixed["rows without a response left out"] += 1
            return None
        return repaired

    def _texts(self, example: Example) -> Example:
        """Encodings, special tokens, ends; the row with what can be mended."""
        if not any(checks.prompt_texts(example)):
            self.report.add("empty prompt", self.place)
        elif self.survey.prompts[example.key] > 1:
            self.report.add("repeated prompt", self.place)
        if any(checks.is_broken(text) for text in checks.texts(example)):
            self.report.add("broken encoding", self.place)
        for response in example.responses:
            if checks.too_short(response, example, self.survey.usual_negative):
                self.report.add("too-short negative", self.place)
            if self.survey.usually_finished(response.role) and not checks.ends_well(response.text):
                self.report.add("ends in mid-sentence", self.place)
        self._special_tokens(example)
        responses = tuple(self._mended(response) for response in example.responses)
        prompt = example.prompt
        if isinstance(prompt, str):
            prompt = self._clean(prompt)
        else:
            prompt = tuple((message[0], self._clean(message[1]), *message[2:]) for message in prompt)
        mended = dataclasses.replace(example, prompt=prompt, responses=tuple(one for one in responses if one.said))
        self.report.fixed["rows with mended texts"] += mended != example
        return mended

    def _special_tokens(self, example: Example) -> None:
        for index, text in enumerate(checks.texts(example)):
            found = [token for token in self.special if token and token in text]
            if not found:
                continue
            is_prompt = index < len(checks.prompt_texts(example))
            if is_prompt and self._begins_with_bos(text):
                self.report.add("double BOS", self.place)
            elif not is_prompt and any(text.rstrip().endswith(end) for end in self.ends if end):
                self.report.add("double EOS", self.place)
            else:
                self.report.add("special token in a text", self.place)

    def _begins_with_bos(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return bool(bos) and text.lstrip().startswith(bos)

    def _mended(self, response: Response) -> Response:
        """A response with its text cleaned; steps stay where the text does."""
        text = self._clean(response.text)
        if text == response.text:
            return response
        return dataclasses.replace(response, text=text, steps=(), behavior_logps=None)

    def _clean(self, text: str) -> str:
        if checks.is_broken(text):
            text = checks.mended(text)
        return checks.stripped(text, self.special) if any(token in text for token in self.special if token) else text

    def _roles(self, example: Example) -> Example:
        """Texts that are positive and negative, here or elsewhere; the row without them."""
        exact, alike = checks.contradictions(example)
        if exact:
            self.report.add("identical positive and negative", self.place)
        if alike:
            self.report.add("alike positive and negative", self.place)
        elsewhere = {
            one.said for one in example.responses if self.survey.roles.get(checks.text_key(example, one.said)) == 3
        } - exact
        if elsewhere:
            self.report.add("same text under both roles", self.place)
        gone = exact | elsewhere
        if not gone:
            return example
        self.report.fixed["contradicting responses taken out"] += sum(one.said in gone for one in example.responses)
        return dataclasses.replace(example, responses=tuple(one for one in example.responses if one.said not in gone))

    def _tokens(self, example: Example) -> bool:
        """What shows in tokens only. False: no response has room behind the prompt."""
        prompt = checks.prompt_texts(example)
        try:
            prompt_ids = encode_prompt(self.tokenizer, example.prompt)
        except TemplateRefuses:
            self.report.add("template refuses", self.place)
            return True
        if self.lacks_end:
            self.report.add("missing EOS", self.place)
        if lacks_bos(self.tokenizer, prompt_ids):
            self.report.add("missing BOS", self.place)
        if has_double_bos(self.tokenizer, prompt_ids) and not any(map(self._begins_with_bos, prompt)):
            self.report.add("double BOS", self.place)
        room = None if self.max_length is None else self.max_length - len(prompt_ids)
        if room is not None and room < 1:
            self.report.add("no room for a response", self.place)
            return False
        cut: dict[str, set[tuple[int, ...]]] = {"positive": set(), "negative": set(), "sample": set()}
        for response in example.responses:
            try:
                ids = encode_response(self.tokenizer, example.prompt, prompt_ids, response.text, response.calls)
            except ValueError:
                self.report.add("prompt boundary unclear", self.place)
                continue
            if room is not None and len(ids) > room:
                self.report.add("truncated response", self.place)
                cut[response.role].add(tuple(ids[:room]))
        if cut["positive"] & cut["negative"] and not checks.contradictions(example)[0]:
            self.report.add("identical after truncation", self.place)
        return True
