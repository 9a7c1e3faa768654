"""`align preview`: what the model is shown of a row, token by token, and what of it is learned from."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align.data import layout, sources
from align.data.encode import Encoder
from align.data.examples import Example, RowError, parse_row
from align.data.layout import PACKED, PADDED
from align.data.ledger import Ledger
from align.data.tokenize import ROLE_NAMES, TokenizedResponse, TokenizedRow, encode_response
from align.errors import has_colour, printable, shorten

LABELS = {1: "good step", -1: "bad step", 0: "unjudged"}
_MOST_READ = 1000  # rows that are looked through for the ones to show


@dataclass(frozen=True)
class Piece:
    """Tokens one behind the other that count alike."""

    tokens: tuple[str, ...]  # as shown: escaped, with visible spaces and line breaks
    label: int | None  # of the step, see LABELS; None: no step of the response is judged
    weight: float


@dataclass(frozen=True)
class ResponseView:
    role: str
    pieces: tuple[Piece, ...]
    weight: float
    reward: float | None
    cut: tuple[str, ...]  # tokens behind data.max_length, which are not learned


@dataclass(frozen=True)
class RowView:
    """A row as the model sees it."""

    place: str
    prompt: tuple[str, ...]
    responses: tuple[ResponseView, ...]
    packed: int  # tokens forwarded
    padded: int  # the same without sharing the prompt
    remarks: tuple[str, ...]  # what was dropped or cut


def main(recipe, tokenizer, rows: int, html: str | None) -> None:
    """Shows the first usable rows of a recipe on the terminal, and writes them to a file of HTML if asked."""
    encoder = Encoder(recipe, tokenizer, recipe.build_objective())
    views = list(itertools.islice(_views(encoder, tokenizer), rows))
    if html:
        from align.data.preview_html import page
        from align.run import write_text

        write_text(Path(html).expanduser(), page(views, recipe.name))
        print(f"{shorten(html, 100)}: {len(views)} rows")
        return
    print("\n\n".join(text(view, has_colour(sys.stdout)) for view in views) or "no row can be used; see align doctor")


def _views(encoder: Encoder, tokenizer) -> Iterator[RowView]:
    """Row by row of all sources, reading no further than asked. Rows that give nothing are shown with the reason."""
    recipe = encoder.recipe
    for source in recipe.data.sources:
        for place, raw in itertools.islice(sources.rows(source.path, source.split), _MOST_READ):
            ledger = Ledger()
            try:
                if isinstance(raw, RowError):
                    raise raw
                example = parse_row(raw, source=source.path, place=place)
            except RowError as error:
                yield RowView(str(place), (), (), 0, 0, (f"broken: {printable(str(error))}",))
                continue
            is_builtin = source.path.startswith(sources.BUILTIN)
            if not is_builtin and sources.is_held_out(example, recipe.eval.holdout):
                continue
            found = list(encoder.training_rows(example, ledger))
            remarks = tuple(f"{reason} ({count})" for reason, count in sorted(ledger.dropped.items()))
            if not found:
                yield RowView(str(place), _shown(tokenizer, _prompt(encoder, example)), (), 0, 0, remarks)
            for row in found:
                yield view(row, tokenizer, remarks)


def _prompt(encoder: Encoder, example: Example) -> tuple[int, ...]:
    row = encoder.tokens(example, set(), Ledger())
    return row.prompt_ids if row is not None else ()


def view(row: TokenizedRow, tokenizer, remarks: tuple[str, ...] = ()) -> RowView:
    """A tokenised row, ready to be shown."""
    responses = tuple(_response(row, response, tokenizer) for response in row.responses)
    packed, padded = layout.size([row], PACKED), layout.size([row], PADDED)
    return RowView(str(row.example.place), _shown(tokenizer, row.prompt_ids), responses, packed, padded, remarks)


def _response(row: TokenizedRow, response: TokenizedResponse, tokenizer) -> ResponseView:
    labels = response.step_labels or (None,) * len(response.ids)
    weights = response.token_weights or (1.0,) * len(response.ids)
    words = _shown(tokenizer, response.ids)
    alike = itertools.groupby(zip(words, labels, weights, strict=True), key=lambda token: token[1:])
    pieces = tuple(Piece(tuple(word for word, _, _ in tokens), *key) for key, tokens in alike)
    cut = _shown(tokenizer, _behind(row, response, tokenizer))
    return ResponseView(ROLE_NAMES[response.role], pieces, response.weight, response.reward, cut)


def _behind(row: TokenizedRow, response: TokenizedResponse, tokenizer) -> tuple[int, ...]:
    """The tokens of a cut response that are not learned."""
    for given in row.example.responses:
        try:
            ids = encode_response(tokenizer, row.example.prompt, row.prompt_ids, given.text, given.calls)
        except ValueError:  # one that was dropped for that
            continue
        if len(ids) > len(response.ids) and tuple(ids[: len(response.ids)]) == response.ids:
            return tuple(ids[len(response.ids) :])
    return ()


def _shown(tokenizer, ids) -> tuple[str, ...]:
    """Tokens as they are shown: leading spaces as dots, line breaks as arrows, control characters escaped."""
    words = []
    for number in ids:
        word = tokenizer.decode([number])
        if "\ufffd" in word or not word:  # a part of a character
            word = str(tokenizer.convert_ids_to_tokens(number))
        lead = len(word) - len(word.lstrip(" "))
        word = "\u00b7" * lead + word[lead:].replace("\n", "\u23ce").replace("\t", "\u21e5")
        words.append(printable(word))
    return tuple(words)


_CODES = {"dim": "2", "positive": "32", "negative": "31", "sample": "36", "cut": "9;2", "head": "1"}
_MARK = {"positive": "+", "negative": "-", "sample": "~"}


def text(shown: RowView, in_colour: bool) -> str:
    """A row for a terminal; readable without colour, too."""

    def paint(what: str, words: str) -> str:
        return f"\033[{_CODES[what]}m{words}\033[0m" if in_colour else words

    lines = [paint("head", _title(shown))]
    lines += [f"    {remark}" for remark in shown.remarks]
    if shown.prompt:
        lines.append("  prompt, not learned: " + paint("dim", "\u2502".join(shown.prompt)))
    for response in shown.responses:
        facts = response_facts(response)
        lines.append(f"{_MARK[response.role]} {paint(response.role, response.role)}, {facts}")
        for piece in response.pieces:
            lines.append(f"    {_piece_title(piece)}" + paint(response.role, "\u2502".join(piece.tokens)))
        if response.cut:
            lines.append(f"    cut, {len(response.cut)} tokens: " + paint("cut", "\u2502".join(response.cut)))
    return "\n".join(lines)


def response_facts(response: ResponseView) -> str:
    """Tokens, weight and reward of a response, in words."""
    facts = [f"{sum(len(piece.tokens) for piece in response.pieces)} tokens scored"]
    facts += [f"weight {response.weight:g}"] if response.weight != 1 else []
    facts += [f"reward {response.reward:g}"] if response.reward is not None else []
    return ", ".join(facts)


def _piece_title(piece: Piece) -> str:
    facts = [] if piece.label is None else [LABELS[piece.label]]
    facts += [f"weight {piece.weight:g}"] if piece.weight != 1 else []
    return f"{', '.join(facts)}: " if facts else ""


def _title(shown: RowView) -> str:
    place = printable(shown.place)
    if not shown.responses:
        return f"{place}  not used"
    saved = 1 - shown.packed / shown.padded
    return f"{place}  {shown.packed} tokens packed, {shown.padded} padded: {saved:.0%} saved"
