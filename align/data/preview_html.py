"""`align preview --html`: one file that needs nothing else; what colour says, words and marks say, too."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from align.data.preview import LABELS, Piece, ResponseView, RowView, response_facts

_STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h2 { font-size: 1rem; margin: 2rem 0 .3rem; } p { margin: .2rem 0; } .remark { color: #444; }
.tokens { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere; padding: .3rem .5rem; }
.tokens span { border-right: 1px solid #bbb; padding: 0 1px; }
.prompt { background: #f2f2f2; color: #555; }
.positive { border-left: 5px solid #0072b2; } .negative { border-left: 5px double #d55e00; }
.sample { border-left: 5px dotted #555; }
.good { background: #e3f0fa; } .bad { background: #fdebd8; text-decoration: underline dotted; }
.cut { color: #777; text-decoration: line-through; } b { font-weight: 600; }
@media print { body { margin: 0; } .tokens { break-inside: avoid; } }
"""


def page(views: Sequence[RowView], name: str) -> str:
    """The whole file."""
    rows = "\n".join(_row(view) for view in views) or "<p>No row can be used; see align doctor.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}: rows</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(name)}: what the model is shown</h1>\n"
        "<p>Bars divide tokens. The prompt is not learned. A dot is a leading space, an arrow a line break.</p>\n"
        f"{rows}\n</body></html>\n"
    )


def _row(view: RowView) -> str:
    use = f"{view.packed} tokens packed, {view.padded} padded" if view.responses else "not used"
    parts = [f"<h2>{escape(view.place)} <small>{use}</small></h2>"]
    parts += [f'<p class="remark">{escape(remark)}</p>' for remark in view.remarks]
    if view.prompt:
        parts.append(f'<p>prompt, not learned</p><div class="tokens prompt">{_tokens(view.prompt)}</div>')
    parts += [_response(response) for response in view.responses]
    return f"<section>{''.join(parts)}</section>"


def _response(response: ResponseView) -> str:
    pieces = "".join(_piece(piece) for piece in response.pieces)
    if response.cut:
        pieces += f"<p>cut, {len(response.cut)} tokens</p>" + f'<div class="tokens cut">{_tokens(response.cut)}</div>'
    return f'<div class="{response.role}"><p><b>{response.role}</b>, {response_facts(response)}</p>{pieces}</div>'


def _piece(piece: Piece) -> str:
    kind = {1: "good", -1: "bad"}.get(piece.label, "")
    facts = [] if piece.label is None else [LABELS[piece.label]]
    facts += [f"weight {piece.weight:g}"] if piece.weight != 1 else []
    title = f"<p>{', '.join(facts)}</p>" if facts else ""
    return f'{title}<div class="tokens {kind}">{_tokens(piece.tokens)}</div>'


def _tokens(words: Sequence[str]) -> str:
    return "".join(f"<span>{escape(word)}</span>" for word in words)
