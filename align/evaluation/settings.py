"""What measures can be told beside the rows."""

from __future__ import annotations

from dataclasses import dataclass

from align.judges.options import Verifier


@dataclass(frozen=True)
class Settings:
    verifier: Verifier | None = None  # pass@k: what tells right answers from wrong ones
    samples: int = 8  # pass@k: answers drawn for each prompt
    max_new_tokens: int = 64  # longest answer that is written, in tokens
