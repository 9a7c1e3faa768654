"""What a recipe may say of verifiers, which judge answers, and of the judges of their steps."""

from __future__ import annotations

from dataclasses import dataclass

from align.schema import option

VERIFIERS = ("numeric", "exact", "regex", "math", "code")
SEGMENTS = ("auto", "lines", "sentences", "markers", "wtpsplit")


@dataclass(frozen=True, kw_only=True)
class Verifier:
    name: str = option(
        "numeric", doc=f"Compares an answer with the row's positives: {', '.join(VERIFIERS)} or package.function."
    )
    pattern: str | None = option(None, doc="regex: what to compare; its first group, or all of it, at the last match.")
    timeout: float = option(5.0, gt=0, le=600, doc="code: seconds of a run, of the clock and of the processor.")
    memory: int = option(512, ge=64, doc="code: most memory of a run, in MiB.")


@dataclass(frozen=True, kw_only=True)
class RolloutJudge:
    """A step is as good as the share of answers continued from its end that come out right."""

    n: int = option(4, ge=1, doc="Continuations from the end of each step.")
    good: float = option(0.5, gt=0, le=1, doc="Least share of right ones with which a step counts as right.")


@dataclass(frozen=True, kw_only=True)
class PrmJudge:
    """A process reward model: a head on tokens, or the word that a language model goes on with."""

    path: str = option(doc="A folder or hub id.")
    separator: str = option("\n", doc="What stands behind each step, as in its training; the score is read there.")
    good_token: str | None = option(None, doc="The word of a language model that means right; null: a head on tokens.")
    bad_token: str | None = option(None, doc="The word that means wrong; null: all others.")
    good: float = option(0.5, gt=0, le=1, doc="Least probability with which a step counts as right.")


@dataclass(frozen=True, kw_only=True)
class LlmJudge:
    """A language model behind an OpenAI-compatible endpoint."""

    url: str = option(doc="Up to and without /chat/completions, for instance http://localhost:8000/v1.")
    model: str = option(doc="Its name there.")
    key_from: str | None = option(None, doc="The environment variable that holds the key; null: none is sent.")
    timeout: float = option(60.0, gt=0, doc="Seconds to wait for a reply.")
    retries: int = option(4, ge=0, doc="How often a request is made again.")
    parallel: int = option(4, ge=1, le=64, doc="Requests under way at once.")
    requests_per_minute: float = option(60.0, gt=0, doc="Most requests a minute.")
    max_reply: int = option(1024, ge=16, doc="Longest reply, in tokens.")
    max_tokens: int | None = option(None, ge=1, doc="Tokens, read and written, after which a run stops; null: no end.")
    good: float = option(0.5, gt=0, le=1, doc="Least score with which a step counts as right.")


@dataclass(frozen=True, kw_only=True)
class FunctionJudge:
    """A function of the user's own."""

    name: str = option(doc="package.function: (example, text, ends) -> a score in [0, 1] or None for each step.")
    good: float = option(0.5, gt=0, le=1, doc="Least score with which a step counts as right.")


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who judges the steps of wrong answers; a step counts as right if all of them say so."""

    segment: str = option("auto", choices=SEGMENTS, doc="How answers are cut into steps.")
    rollout: RolloutJudge | None = option(None, doc="Answers continued from the step, by the policy itself.")
    prm: PrmJudge | None = option(None, doc="A process reward model.")
    llm: LlmJudge | None = option(None, doc="A language model behind an endpoint.")
    function: FunctionJudge | None = option(None, doc="A function.")

    def named(self) -> dict[str, object]:
        """kind -> options of the judges that there are."""
        kinds = ("rollout", "prm", "llm", "function")
        return {kind: getattr(self, kind) for kind in kinds if getattr(self, kind) is not None}
