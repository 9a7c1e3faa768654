"""The judges of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from align import models
from align.errors import UserError, shorten
from align.judges import Answer, Judge, Scores, verifiers
from align.judges.endpoint import Endpoint
from align.judges.llm import LlmJudge
from align.judges.prm import PrmJudge
from align.judges.rollout import RolloutJudge

if TYPE_CHECKING:
    from align.generation import Policy
    from align.judges.options import FunctionJudge as FunctionOptions
    from align.recipe import Recipe


def load(recipe: Recipe, policy: Callable[[], Policy]) -> list[Judge]:
    """The judges that the recipe names; `policy` is asked for only if one of them continues answers with it."""
    judges, found = recipe.judges, []
    if judges.rollout is not None:
        found.append(_rollout(recipe, policy()))
    if judges.prm is not None:
        model, tokenizer = models.load_reward_model(judges.prm.path, has_token_head=judges.prm.good_token is None)
        found.append(PrmJudge(model, tokenizer, judges.prm))
    if judges.llm is not None:
        found.append(LlmJudge(Endpoint(judges.llm, models.cache_folder() / "replies"), judges.llm))
    if judges.function is not None:
        found.append(FunctionJudge(judges.function))
    return found


def _rollout(recipe: Recipe, policy: Policy) -> RolloutJudge:
    options = recipe.judges.rollout
    judge = RolloutJudge(
        policy.model, policy.tokenizer, verifiers.load(recipe.rollouts.verifier), recipe.sampling,
        n=options.n, good=options.good, seed=recipe.train.seed,
    )  # fmt: skip
    judge.made_by |= {"model": policy.path, "weights_sha256": policy.weights_sha256}
    judge.made_by |= {"verifier": recipe.rollouts.verifier.name}
    return judge


class FunctionJudge:
    """A function of the user's own: (example, text, ends) -> a score in [0, 1] or None for each step."""

    name = "function"

    def __init__(self, options: FunctionOptions):
        self.function, self.good = verifiers.dotted(options.name, "judges.function.name"), options.good
        self.made_by = {"function": options.name, "source_sha256": verifiers.source_sha256(self.function)}

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Scores:
        name, place = self.made_by["function"], str(answer.example.place)
        try:
            scores = list(self.function(answer.example, answer.text, answer.ends))
        except Exception as error:
            what = f"{name} fails: {type(error).__name__}: {shorten(error, 120)}"
            raise UserError(place, what, "mend the function") from error
        if len(scores) != len(answer.ends) or not all(one is None or 0 <= one <= 1 for one in scores):
            fix = f"return {len(answer.ends)} scores from 0 to 1, or None"
            raise UserError(place, f"{name} returns {shorten(scores)}", fix)
        return scores
