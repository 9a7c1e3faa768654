"""The recipe section mining: which candidates there are, how they are scored, and which become negatives."""

from __future__ import annotations

from dataclasses import dataclass

from align.judges.options import Verifier
from align.schema import option

OF_POLICY = ("logp", "logp_per_token")  # nats; under the policy
OF_REFERENCE = ("reference_logp", "reference_logp_per_token")  # nats
IMPLICIT = "implicit_reward"  # logp - reference_logp: DPO's reward over beta, in nats
SIMILARITY = "similarity"  # cosine to the nearest positive
RELEVANCE = "relevance"  # cosine to the prompt, the score of the papers on retrieval
REWARD = "reward"  # of a reward model
SCORES = (*OF_POLICY, *OF_REFERENCE, IMPLICIT, SIMILARITY, RELEVANCE, REWARD)


def _scores() -> list[str]:
    return [SIMILARITY]


def _strategy() -> dict:
    return {"name": "top_k"}


@dataclass(frozen=True, kw_only=True)
class Mining:
    """align mine: the negatives of each prompt are chosen among candidates, by scores."""

    own: bool = option(True, doc="Candidates: the negatives and samples of the prompt's own row.")
    files: list[str] = option(list, doc="Candidates: those of the same prompts in these files, of align sample, say.")
    neighbours: int = option(
        0, ge=0, le=1000, doc="Candidates: the positives of this many other prompts, the most similar ones."
    )
    scores: list[str] = option(
        _scores, doc=f"What is told of each candidate, the first ranks them: {', '.join(SCORES)}."
    )
    strategy: dict = option(_strategy, doc="name, and the strategy's own keys; see align/negatives/strategies.py.")
    keep: int = option(1, ge=1, doc="Most negatives chosen for a prompt.")
    policy: str | None = option(
        None, doc="Who gives log-probs: a finished run (its base is the reference) or a model; null: model.path."
    )
    encoder: str | None = option(None, doc="Folder or hub id of a sentence encoder; null: the packaged one.")
    reward_model: str | None = option(None, doc="Folder or hub id of a reward model: a sequence classifier of 1 label.")
    verifier: Verifier | None = option(None, doc="Candidates that it does not call wrong are refused; null: none.")
    ches_keep: float | None = option(
        None, gt=0, le=1, doc="Share of all candidates kept, those that pull their positive down least; null: all."
    )

    @property
    def asks_reference(self) -> bool:
        return bool({*OF_REFERENCE, IMPLICIT} & set(self.scores))

    @property
    def asks_policy(self) -> bool:
        return bool({*OF_POLICY, IMPLICIT} & set(self.scores)) or self.ches_keep is not None

    @property
    def asks_encoder(self) -> bool:
        return bool({SIMILARITY, RELEVANCE} & set(self.scores)) or self.neighbours > 0 or self.asks_vectors

    @property
    def asks_vectors(self) -> bool:
        """Whether the strategy looks at the texts themselves."""
        return self.strategy.get("name") == "clusters"
