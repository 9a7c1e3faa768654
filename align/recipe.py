"""The recipe: every key of the YAML file, typed, bounded, with its sentence; loading and cross-field checks.

Sections that one part of the program reads stand in that part's `options.py`. A loaded `Recipe` is frozen and complete:
what it does not say is not used anywhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from align import objectives, recipe_checks, yaml_lines
from align.data import sources
from align.data.layout import ALL, AUTO, CHEAP, NONE
from align.data.options import Data, Source
from align.errors import UserError, UserErrors, shorten
from align.guard.options import Guard
from align.judges.options import Judges
from align.negatives import mining_checks
from align.negatives.mining_options import Mining
from align.negatives.options import Degrade, Repair, Sampling
from align.recipe_checks import training_argument_names as training_argument_names
from align.rollouts.options import Rollouts, WarmStart
from align.schema import Reader, nearest, option
from align.yaml_lines import dotted

COMMAND_LINE = "command line"  # the place of what overrides say


@dataclass(frozen=True, kw_only=True)
class Adapter:
    rank: int = option(16, ge=1, doc="Rank of the LoRA matrices.")
    alpha: float | None = option(None, gt=0, doc="LoRA scale times rank; null means twice the rank.")
    dropout: float = option(0.0, ge=0, lt=1, doc="Dropout in front of the LoRA matrices.")
    targets: list[str] | str = option("all-linear", doc="Module names that get LoRA matrices, or 'all-linear'.")
    heads: list[str] = option(list, doc="Attention heads that alone are trained, L12H3 from L0H0 on; none: targets.")


@dataclass(frozen=True, kw_only=True)
class Model:
    path: str = option("smollm2-135m-instruct", doc="The embedded default, a folder, a .gguf file or a hub id.")
    revision: str | None = option(None, doc="Branch, tag or commit of a hub id.")
    adapter: Adapter | None = option(None, doc="LoRA adapter to train; null trains all weights.")
    trust_remote_code: bool = option(False, doc="Run Python code that comes with the model.")


@dataclass(frozen=True, kw_only=True)
class Reference:
    policy: str | None = option(None, doc="adapter_off, frozen (a copy of the start) or a model path; null chooses.")
    samples: str | None = option(None, doc="Another reference for the samples only (D2O's second one).")
    behavior: str | None = option(
        None, doc="Who wrote the logged responses: adapter_off, frozen or a path; null: the rows' behavior_logps tell."
    )
    teacher: str | None = option(None, doc="Negative teacher: a run of likra with a negative head, or a model path.")
    store: str = option("auto", doc="Log-probs on disk, never computed twice: auto (the cache), off, or a folder.")
    store_dtype: str = option("float32", choices=("float32", "float16"), doc="Their type; float16 rounds to 3 digits.")


@dataclass(frozen=True, kw_only=True)
class Retain:
    sources: list[Source] = option(list, doc="Rows whose positives must stay likely.")
    positives: bool = option(False, doc="Whether the positives of the objective's own prompts must stay likely, too.")
    weight: float = option(1.0, gt=0, doc="Weight of the retain term, the mean negative log-likelihood a token.")
    prompts_per_step: int = option(4, ge=1, doc="Retain prompts in an optimiser step, over all ranks.")


@dataclass(frozen=True, kw_only=True)
class Weights:
    positive: float = option(1.0, ge=0, doc="Weight of positives, times the weight they have in the rows.")
    negative: float = option(1.0, ge=0, doc="Weight of negatives, times the weight they have in the rows.")
    contradicting_steps: float = option(
        1.0,
        ge=0,
        le=1,
        doc="Weight of tokens in steps judged against their response: good in negatives, bad in positives.",
    )
    unjudged_steps: float = option(
        1.0, ge=0, le=1, doc="Weight of tokens without a judgement in responses with judged steps."
    )
    calibrate: float | None = option(
        None,
        ge=0,
        lt=1,
        doc="Reward calibration of pairs (align/calibration.py): what its running means keep a step, 0.98; null: off.",
    )


@dataclass(frozen=True, kw_only=True)
class Train:
    learning_rate: float = option(1e-4, gt=0, doc="Peak learning rate.")
    epochs: float = option(1.0, gt=0, doc="Passes over the prompts.")
    max_steps: int | None = option(None, ge=1, doc="Stop after this many optimiser steps; null: by epochs.")
    prompts_per_step: int = option(16, ge=1, doc="Prompts in an optimiser step, over all ranks.")
    tokens_per_device: int = option(
        4096, ge=16, doc="Most tokens of a micro-batch on a device, as they lie in its layout."
    )
    seed: int = option(0, ge=0, doc="Seed of everything random.")
    save_every: int = option(0, ge=0, doc="Steps between checkpoints; 0 saves only the end.")
    snapshots: bool = option(False, doc="Keep the weights after 1, 2, 4, 8, ... steps, for a learning curve.")
    resume: bool | str = option(False, doc="true (newest checkpoint, or the start) or a checkpoint folder.")
    precision: str = option(
        "auto", choices=("auto", "fp32", "bf16"), doc="Arithmetic; auto: bf16 where the hardware is fast at it."
    )
    recompute: str = option(
        AUTO,
        choices=(AUTO, NONE, CHEAP, ALL),
        doc="What the backward pass computes again: nothing, what costs little, whole layers; auto: the least that "
        "the memory of tokens_per_device tokens asks for, of rows up to 8 times as large.",
    )
    hf: dict = option(dict, doc="Any other field of transformers.TrainingArguments.")


@dataclass(frozen=True, kw_only=True)
class Eval:
    every: int = option(0, ge=0, doc="Steps between evaluations on the held-out rows; 0: before and after only.")
    sources: list[Source] | None = option(
        None, doc="Held-out rows; null: the sources' own held-out part, builtin:benign."
    )
    holdout: float | None = option(
        None, ge=0, lt=1, doc="Share of a file's prompts kept out of training; null: 0.1 without eval.sources, else 0."
    )
    generate: int = option(3, ge=0, doc="Held-out prompts answered before and after, for the eye.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str = option(doc="Name of the run.")
    model: Model = option(Model, doc="The policy.")
    data: Data = option(Data, doc="Rows to learn from.")
    reference: Reference = option(Reference, doc="Who the policy is compared with.")
    retain: Retain = option(Retain, doc="Good answers that hold the policy in place, beside any objective.")
    weights: Weights = option(Weights, doc="What responses and judged steps weigh, under any objective.")
    sampling: Sampling = option(Sampling, doc="Samples of the policy's own.")
    warm_start: WarmStart | None = option(None, doc="Imitation before the first roll-outs; null: none.")
    rollouts: Rollouts | None = option(None, doc="align iterate: data.sources are prompts to sample from; null: rows.")
    judges: Judges | None = option(None, doc="Judges of the steps of wrong roll-outs; null: steps are not judged.")
    mining: Mining | None = option(None, doc="align mine: negatives are chosen among candidates; null: none are.")
    degrade: Degrade | None = option(None, doc="Negatives that are written under poorer conditions; null: none.")
    repair: Repair | None = option(None, doc="Looks for labels that are wrong, and mends them; null: nothing.")
    objective: dict = option(doc="name, and the objective's hyper-parameters.")
    train: Train = option(Train, doc="Optimisation.")
    eval: Eval = option(Eval, doc="Held-out measurements.")
    guard: Guard = option(Guard, doc="The watchdog over what negatives do to everything else.")
    output: str = option(doc="The run folder.")

    def build_objective(self) -> objectives.Objective:
        parameters = dict(self.objective)
        return objectives.load(parameters.pop("name"))(**parameters)

    @property
    def samples_ahead(self) -> bool:
        """Whether answers are sampled before anything is trained, whatever the objective needs."""
        return self.rollouts is not None or self.degrade is not None

    def to_yaml(self) -> str:
        """Every value that the run uses, resolved: what the run folder keeps as `recipe.yaml`."""
        needs, data = self.build_objective().needs, dataclasses.asdict(self)
        for section, asked in recipe_checks.SECTION_NEEDS.items():
            if not asked & set(needs) and not (section == "sampling" and self.samples_ahead):
                del data[section]  # `load` refuses sections that the objective does not use
        for section in ("warm_start", "rollouts", "judges", "mining", "degrade", "repair"):
            if data[section] is None:
                del data[section]
        if not self.retain.sources and not self.retain.positives:
            del data["retain"]  # nor may it be there for nothing
        return yaml_lines.dump(data)


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Reads and checks a recipe. Raises UserErrors with every mistake, one line each.

    `overrides` are `key=value` texts such as `train.epochs=2` or `data.sources=[my.jsonl]`.
    """
    errors: list[UserError] = []
    values = [_parsed(text, errors) for text in overrides or []]
    try:
        data, places = yaml_lines.load(Path(path))
    except UserError as error:
        raise UserErrors([*errors, *error.each()]) from None
    for value in values:
        if value is not None:
            _override(data, places, errors, *value)
    reader = Reader(lambda at: _nearest_place(at, places), dotted)
    _plain_sources(data)
    recipe = reader.section(Recipe, data, ())
    cls, objective = _objective(reader, data.get("objective"))
    needs = cls.needs if cls else tuple(objectives.NEEDS)
    if recipe.rollouts is not None:
        for index, other in enumerate(recipe.rollouts.against):
            _objective(reader, other, ("rollouts", "against", index))
    recipe_checks.check(reader, recipe, needs, objective.roles() if objective else objectives.roles_of(needs), data)
    if errors or reader.errors:
        raise UserErrors(errors + reader.errors)
    return resolve(recipe, objective)


def _parsed(text: str, errors: list[UserError]) -> tuple[str, list[str], object] | None:
    """(place, keys, value) of a `key=value`; None for one that is wrong, which goes to `errors`."""
    key, equals, value = text.partition("=")
    where = f"{COMMAND_LINE}: {shorten(text, 80)}"
    if not equals or not key:
        errors.append(UserError(where, "is not key=value", "write, for example, train.epochs=2"))
        return None
    try:
        return where, key.split("."), yaml_lines.parse_value(value, where)
    except UserError as error:
        errors += error.each()
        return None


def _override(data: dict, places: dict, errors: list[UserError], where: str, keys: list[str], value: object) -> None:
    for depth, section in enumerate(keys[:-1], 1):
        if data.get(section) is None:
            data[section] = {}
            places.setdefault(tuple(keys[:depth]), COMMAND_LINE)
        data = data[section]
        if not isinstance(data, dict):
            errors.append(UserError(where, f"{section!r} has no keys", f"write {section}=..."))
            return
    data[keys[-1]] = value
    at = tuple(keys)
    for inner in [other for other in places if other[: len(at)] == at]:
        del places[inner]
    places[at] = COMMAND_LINE


def _nearest_place(at: tuple, places: dict) -> str:
    while at not in places and at:
        at = at[:-1]
    return places[at]


def _plain_sources(data: dict) -> None:
    """`sources: [my.jsonl]` is short for `sources: [{path: my.jsonl}]`."""
    named = [(section, "sources") for section in ("data", "retain", "eval", "guard")]
    for section, key in (*named, ("guard", "anchors")):
        given = (data.get(section) or {}).get(key) if isinstance(data.get(section), dict) else None
        if isinstance(given, list):
            data[section][key] = [{"path": item} if isinstance(item, str) else item for item in given]


def _objective(
    reader: Reader, given: object, at: tuple = ("objective",)
) -> tuple[type | None, objectives.Objective | None]:
    """The class and the objective that the section `at` names; None for what mistakes make unknown."""
    if not isinstance(given, dict):
        return None, None  # the section check has said so
    name = given.get("name")
    if not isinstance(name, str):
        what = "is missing" if name is None else f"{shorten(name)} is not text"
        reader.fail((*at, "name"), what, "one of " + ", ".join(objectives.available()))
        return None, None
    try:
        cls = objectives.load(name)
    except LookupError as error:
        reader.fail((*at, "name"), str(error), nearest(name, objectives.available()))
        return None, None
    before = len(reader.errors)
    parameters = reader.values(cls, {key: value for key, value in given.items() if key != "name"}, at)
    return cls, cls(**parameters) if len(reader.errors) == before else None


def resolve(recipe: Recipe, objective: objectives.Objective) -> Recipe:
    """Fills in what a recipe may leave open, so that the run folder's copy says everything."""
    reference, evaluation = recipe.reference, recipe.eval
    if evaluation.holdout is None:
        evaluation = dataclasses.replace(evaluation, holdout=sources.HOLDOUT if evaluation.sources is None else 0.0)
    if reference.policy is None and "reference" in objective.needs:
        policy = "adapter_off" if recipe.model.adapter else "frozen"
        reference = dataclasses.replace(reference, policy=policy)
    if evaluation.sources is None:
        held_out = [
            dataclasses.replace(source, split=sources.HELD_OUT, weight=1.0)
            for source in recipe.data.sources
            if source.path.startswith(sources.BUILTIN)
            and source.split == "train"
            and sources.check(source.path, sources.HELD_OUT) is None  # not every set has a held-out part
        ]
        if recipe.rollouts is None:  # there, answers to held-out prompts are verified: all must have a right one
            held_out.append(Source(path=f"{sources.BUILTIN}benign", split=sources.HELD_OUT))
        evaluation = dataclasses.replace(evaluation, sources=held_out)
    hyper = {"name": recipe.objective["name"], **dataclasses.asdict(objective)}
    recipe = mining_checks.resolve(recipe)
    return dataclasses.replace(recipe, reference=reference, eval=evaluation, objective=hyper)
