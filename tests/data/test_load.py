"""The rows of a recipe: what is used, what is held out, and an entry in the ledger for all that is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from align import objectives
from align.data.collate import collate
from align.data.load import Rows, load
from align.data.options import Data, Source
from align.errors import UserError
from align.objectives import Objective
from align.recipe import Eval, Recipe, Reference, Retain, Train, Weights
from tests import tiny

NO_SYSTEM = tiny.CHATML.replace(
    "{% for", "{% if messages[0].role == 'system' %}{{ raise_exception('No.') }}{% endif %}{% for", 1
)


def write(file: Path, *rows: dict) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def rows_of(
    train: str, held_out: str, *, template: str = tiny.CHATML, max_length: int = 64, retain: str = "", **data: str
) -> Rows:
    """What the objective DPO gets of two files, and the retain term of a third."""
    recipe = Recipe(
        name="test",
        objective={"name": "dpo"},
        output="nowhere",
        data=Data(sources=[Source(path=train)], max_length=max_length, **data),
        retain=Retain(sources=[Source(path=retain)] if retain else []),
        eval=Eval(sources=[Source(path=held_out)], holdout=0.0),
    )
    return load(recipe, tiny.tokenizer(template), objectives.load("dpo")())


def pair(prompt: object, good: str = "Yes", bad: str = "No") -> dict:
    return {"prompt": prompt, "positives": [good], "negatives": [bad]}


def test_dropped_rows_held_out_are_counted_apart_from_those_of_training(tmp_path):
    train = write(tmp_path / "train.jsonl", pair("a"), pair("b"))
    held_out = write(
        tmp_path / "held.jsonl", pair("c"), pair("d", bad="no " * 200), pair("long " * 200), {"prompt": "e"}
    )
    rows = rows_of(train, held_out, max_length=60, on_bad_rows="skip")
    assert (rows.ledger.read, rows.ledger.used) == (2, 2)
    assert rows.ledger.dropped == {
        "held-out: broken": 1,
        "held-out: response truncated": 1,
        "held-out: row dropped: prompt too long": 1,
    }
    assert rows.ledger.places["held-out: row dropped: prompt too long"] == [f"{held_out}:3"]
    assert [(one.role, len(one.rows)) for one in rows.held_out] == [("negative", 2), ("positive", 2)]
    assert {response.role for response in rows.held_out[0].rows[0].responses} == {-1}


def test_row_that_the_template_refuses_stops_or_is_counted(tmp_path):
    system = pair([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}])
    train, held_out = write(tmp_path / "train.jsonl", pair("a"), system), write(tmp_path / "held.jsonl", pair("c"))
    with pytest.raises(UserError, match=r"train\.jsonl:2: the model's chat template refuses it: No\."):
        rows_of(train, held_out, template=NO_SYSTEM)
    rows = rows_of(train, held_out, template=NO_SYSTEM, on_bad_rows="skip")
    assert (rows.ledger.used, rows.ledger.dropped) == (1, {"row dropped: the chat template refuses it": 1})


def test_retain_rows_keep_their_positives_only_and_are_counted_apart(tmp_path):
    train, held_out = write(tmp_path / "train.jsonl", pair("a")), write(tmp_path / "held.jsonl", pair("c"))
    retain = write(tmp_path / "retain.jsonl", pair("d"), {"prompt": "e", "negatives": ["No"]}, pair("long " * 200))
    rows = rows_of(train, held_out, retain=retain)
    assert (rows.ledger.read, rows.ledger.used) == (1, 1)
    assert [[response.role for response in row.responses] for row in rows.retain] == [[1]]
    assert all(row.retain for row in rows.retain) and not any(row.retain for row in rows.train)
    reasons = ["response unused: negative", "row dropped: no positives", "row dropped: prompt too long"]
    assert {reason for reason in rows.ledger.dropped} == {f"retain: {reason}" for reason in reasons}


def test_retain_without_any_positive_is_refused(tmp_path):
    train, held_out = write(tmp_path / "train.jsonl", pair("a")), write(tmp_path / "held.jsonl", pair("c"))
    retain = write(tmp_path / "retain.jsonl", {"prompt": "e", "negatives": ["No"]})
    with pytest.raises(UserError, match=r"retain\.sources: no row has a positive"):
        rows_of(train, held_out, retain=retain)


# What an objective needs of each response, and what weighs how much


def reply(role: str, text: str = "ab", **more: object) -> dict:
    return {"text": text, "role": role, **more}


def full(role: str, text: str = "ab", **more: object) -> dict:
    """A response with a reward and the log-probs of who wrote it."""
    return reply(role, text, reward=0.5, behavior_logps=[-1.0] * (len(text) + 1)) | more


def ask(*responses: dict, prompt: str = "Hi") -> dict:
    return {"prompt": prompt, "responses": list(responses)}


@pytest.fixture
def run(tmp_path):
    """What an objective gets of these rows."""

    def go(name: str, *rows: dict, retained: list[dict] | None = None, **sections: object) -> Rows:
        train, held_out = write(tmp_path / "train.jsonl", *rows), write(tmp_path / "held.jsonl", pair("c"))
        if retained is not None:
            sections["retain"] = Retain(sources=[Source(path=write(tmp_path / "retain.jsonl", *retained))])
        recipe = Recipe(
            name="test",
            objective={"name": name},
            output="nowhere",
            data=Data(sources=[Source(path=train)], max_length=64),
            eval=Eval(sources=[Source(path=held_out)], holdout=0.0),
            **sections,
        )
        return load(recipe, tiny.tokenizer(), objectives.load(name)())

    return go


def values(rows: Rows, name: str) -> list[list]:
    return [[getattr(response, name) for response in row.responses] for row in rows.train]


def test_weights_of_roles_multiply_those_of_the_rows(run):
    row = ask(reply("positive", weight=3), reply("negative", weight=0.5), reply("negative"))
    rows = run("dpo", row, weights=Weights(positive=0.5, negative=4))
    assert values(rows, "weight") == [[1.5, 2.0, 4.0]]
    assert values(run("dpo", row), "weight") == [[3.0, 0.5, 1.0]]


def test_retain_rows_keep_their_own_weights(run):
    rows = run("dpo", pair("a"), retained=[ask(reply("positive", weight=3))], weights=Weights(positive=0.5))
    assert [response.weight for row in rows.retain for response in row.responses] == [3.0]


STEPS = [{"end": 1, "label": 1}, {"end": 2, "label": -1}, {"end": 3, "label": None}]
JUDGED = ask(reply("positive", "abcd", steps=STEPS), reply("negative", "abcd", steps=STEPS), reply("negative", "abcd"))


@pytest.mark.parametrize(
    "weights, positive, negative",
    [
        ({"contradicting_steps": 0.25}, (1, 0.25, 1, 1, 1), (0.25, 1, 1, 1, 1)),
        ({"unjudged_steps": 0.5}, (1, 1, 0.5, 0.5, 0.5), (1, 1, 0.5, 0.5, 0.5)),
        ({"contradicting_steps": 0, "unjudged_steps": 0}, (1, 0, 0, 0, 0), (0, 1, 0, 0, 0)),
    ],
    ids=["contradicting", "unjudged", "both"],
)
def test_judged_steps_weigh_tokens(run, weights, positive, negative):
    """Tokens: a good one, a bad one, one without a judgement, one behind the steps, and the end of the turn."""
    rows = run("dpo", JUDGED, pair("b"), weights=Weights(**weights))
    assert values(rows, "token_weights") == [[positive, negative, None], [None, None]]
    assert values(rows, "step_labels")[0] == [(1, -1, 0, 0, 0)] * 2 + [None]


def test_steps_that_nothing_weighs_are_labels_only(run):
    rows = run("dpo", JUDGED)
    assert values(rows, "token_weights") == [[None] * 3] and values(rows, "step_labels")[0][0] == (1, -1, 0, 0, 0)


def test_steps_weighed_but_never_judged_are_a_user_error(run):
    unjudged = ask(reply("positive", steps=[{"end": 2, "label": None}]), reply("negative"))
    for weights in ({"contradicting_steps": 0.5}, {"unjudged_steps": 0.0}):
        with pytest.raises(UserError) as error:
            run("dpo", unjudged, weights=Weights(**weights))
        assert str(error.value) == (
            "weights: weighs steps, but no step of any row is judged; "
            "give rows with judged 'steps', or leave contradicting_steps and unjudged_steps out"
        )


def test_no_usable_row_is_told_before_its_steps(run):
    with pytest.raises(UserError, match=r"data\.sources: no row can be used \(response unused: positive: 1, row dropp"):
        run("npo", ask(reply("positive")), weights=Weights(unjudged_steps=0.5))


UNUSED = "rewards of the run unused: a response here has none"


def test_rewards_of_all_are_used(run):
    rows = run("dpo", ask(full("positive"), full("negative", reward=-2)), ask(full("positive"), full("negative")))
    assert values(rows, "reward") == [[0.5, -2.0], [0.5, 0.5]] and UNUSED not in rows.ledger.dropped


def test_rewards_of_some_are_used_by_none(run):
    """Otherwise an objective would see them in the micro-batches that happen to have no others."""
    whole, half = ask(full("positive"), full("negative")), ask(full("positive"), reply("negative"))
    rows = run("dpo", whole, half, whole)
    assert values(rows, "reward") == [[None, None]] * 3
    assert rows.ledger.dropped == {UNUSED: 1} and rows.ledger.places[UNUSED][0].endswith("train.jsonl:2")


def test_rewards_on_one_side_of_every_row_are_not_lost_without_a_word(run):
    rows = run("dpo", *[ask(full("positive"), reply("negative"))] * 2)
    assert values(rows, "reward") == [[None, None]] * 2 and rows.ledger.dropped == {UNUSED: 2}


def test_rows_without_rewards_lose_nothing(run):
    assert run("dpo", pair("a"), pair("b")).ledger.dropped == {}


def test_responses_without_a_needed_reward_are_dropped_and_rows_with_them(run):
    spare = ask(full("positive"), full("negative", "cd"), reply("negative"))
    rows = run("mmpo", spare, ask(full("positive"), reply("negative")))
    assert values(rows, "reward") == [[0.5, 0.5]] and len(rows.weights) == rows.ledger.used == 1
    assert rows.ledger.dropped == {"response dropped: no reward": 2, "row dropped: no negatives": 1}
    assert [place[-1] for place in rows.ledger.places["response dropped: no reward"]] == ["1", "2"]


def test_responses_without_needed_behavior_are_dropped_and_rows_with_them(run):
    wrong = full("negative", behavior_logps=[-1.0])  # not one for each token
    rows = run("topr", ask(full("positive"), reply("negative"), wrong), ask(reply("negative")))
    assert values(rows, "behavior_logps") == [[(-1.0, -1.0, -1.0)]]
    assert rows.ledger.dropped == {
        "behavior_logps unused: not one for each token": 1,
        "response dropped: no behavior_logps": 3,
        "row dropped: no positives or negatives": 1,
    }


def test_behavior_of_a_model_needs_none_in_the_rows(run):
    given = ask(full("positive", reward=None), reply("negative"))
    rows = run("topr", given, reference=Reference(behavior="frozen"))
    assert len(rows.train[0].responses) == 2 and rows.ledger.dropped == {}


def test_no_row_with_what_is_needed_is_a_user_error(run):
    with pytest.raises(UserError) as error:
        run("mmpo", pair("a"))
    assert str(error.value) == (
        "data.sources: no row can be used (response dropped: no reward: 2, row dropped: no positives: 1); "
        "the objective needs pairs and rewards: give rows that have them"
    )


# The retain term on positives of the objective's own prompts

KEEP = Retain(positives=True)


@pytest.mark.parametrize("name", ["d2o", "npo"])
def test_positives_stay_for_the_retain_term_and_out_of_sight_of_the_objective(run, name):
    rows = run(name, ask(reply("positive"), reply("negative"), reply("negative", "cd")), pair("b"), retain=KEEP)
    assert values(rows, "role") == [[1, -1, -1], [1, -1]] and rows.ledger.dropped == {}
    batch, roles = collate(rows.train, 258), objectives.load(name)().roles()
    assert 1 not in roles and batch.for_objective(roles).role.tolist() == [-1] * 3
    assert batch.is_retained(True).tolist() == [True, False, False, True, False]
    assert values(run(name, pair("b")), "role") == [[-1]]


def test_no_positive_to_retain_is_a_user_error(run):
    with pytest.raises(UserError) as error:
        run("npo", ask(reply("negative")), retain=KEEP)
    assert str(error.value) == "retain.positives: no row has a positive; give rows with good answers, or retain.sources"


def test_a_row_with_positives_only_is_not_used_for_the_retain_term(run):
    rows = run("npo", pair("a"), ask(reply("positive")), retain=KEEP)
    assert len(rows.train) == 1 and rows.ledger.dropped == {"row dropped: no negatives": 1}


@dataclasses.dataclass(frozen=True)
class Picky(Objective):
    """Needs everything of the negatives alone."""

    needs = ("negatives", "rewards", "behavior")


def test_positives_for_the_retain_term_need_nothing_else(run, monkeypatch):
    monkeypatch.setattr(objectives, "load", lambda name: Picky)
    rows = run("picky", ask(reply("positive"), full("negative"), reply("negative")), retain=KEEP)
    assert values(rows, "role") == [[1, -1]]
    assert rows.ledger.dropped == {"response dropped: no reward": 1}
    seen = collate(rows.train, 258).for_objective({-1})
    assert seen.reward.tolist() == [0.5] and seen.behavior_logps.tolist() == [[-1.0] * 3]


def test_positives_for_the_retain_term_take_no_rewards_from_the_objective(run):
    rows = run("npo", ask(reply("positive"), full("negative")), retain=KEEP)
    assert values(rows, "reward") == [[None, 0.5]] and rows.ledger.dropped == {}


def test_rewards_of_positives_for_the_retain_term_are_not_those_of_the_objective(run):
    rows = run("npo", ask(full("positive"), reply("negative")), retain=KEEP)
    assert rows.ledger.dropped == {} and collate(rows.train, 258).for_objective({-1}).reward is None


def test_what_retain_rows_lack_takes_nothing_from_the_objective(run):
    """They lie in micro-batches with the others, without rewards or log-probs of who wrote them."""
    rows = run("topr", ask(full("positive"), full("negative")), retained=[ask(reply("positive"))])
    assert rows.ledger.dropped == {}
    seen = collate(rows.train + rows.retain, 258).for_objective({1, -1})
    assert seen.reward.tolist() == [0.5, 0.5] and seen.behavior_logps.tolist() == [[-1.0] * 3] * 2


def test_a_retain_row_that_can_never_fit_a_device_is_told(tmp_path):
    train = write(tmp_path / "train.jsonl", pair("a"))
    retain = write(tmp_path / "retain.jsonl", {"prompt": "b", "positives": ["much " * 40]})
    recipe = Recipe(
        name="test",
        objective={"name": "dpo"},
        output="nowhere",
        data=Data(sources=[Source(path=train)], max_length=512),
        retain=Retain(sources=[Source(path=retain)]),
        train=Train(tokens_per_device=150, recompute="none"),
        eval=Eval(sources=[], holdout=0.0),
    )
    with pytest.raises(
        UserError, match=f"{retain}:1: .* takes up to 2[0-9][0-9] tokens, train.tokens_per_device is 150"
    ):
        load(recipe, tiny.tokenizer(), objectives.load("dpo")())
