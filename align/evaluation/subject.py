"""What is measured: the models of a finished run, and the scores that are made of their log-probs.

Every run has its base (what it began as). Beside it stands the policy or, of the objective `likra`, its heads and their
ratio. A score is a weighted sum of log-probs of heads, so that each head scores an answer once for all scores.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from align import likelihood_ratio, models, precision
from align.data.layout import PACKED, PADDED
from align.errors import UserError, shorten
from align.objectives import POSITIVE
from align.recipe import Adapter, Model
from align.run import HEADS_FILE, RunFolder, find_heads, read_json
from align.scoring.answers import Head, layout_for
from align.scoring.head import causal_lm
from align.scoring.routing import Routing

BASE, POLICY, RATIO = "base", "policy", "ratio"
PREFIX_FILE = "prompt_prefix.txt"  # beside the weights of a policy trained under NAT
ADAPTER_FILE = "adapter_config.json"  # there if the weights are an adapter
_WEIGHTS = (ADAPTER_FILE, "config.json", HEADS_FILE)  # one of them lies where weights do


@dataclass(frozen=True)
class Subject:
    """Models in evaluation mode, ready to score."""

    name: str  # of what was loaded, for messages
    tokenizer: object
    heads: dict[str, Head]
    scores: dict[str, dict[str, float]]  # name of a score -> the weight of each head's log-prob
    max_length: int
    layout: str
    in_bf16: bool
    prefix: str | None = None  # NAT: what stands in front of what the policy, and it alone, is asked

    def without(self, head: str) -> Subject:
        """The subject without one of its heads, and the scores that take it."""
        heads = {name: one for name, one in self.heads.items() if name != head}
        scores = {name: weights for name, weights in self.scores.items() if head not in weights}
        return dataclasses.replace(self, heads=heads, scores=scores)


def load(run: str | Path, weights: Path | None = None, *, is_whole: bool = False) -> Subject:
    """A finished run, or `weights` of it (a snapshot) in place of its final ones; also what `align merge` wrote of one.

    `is_whole`: a LoRA policy becomes a model of its own, float32, with the adapter added to its weights. Raises
    UserError if there are no weights, or the base is no longer that of the run.
    """
    check(run, weights)
    folder, is_final = RunFolder(run), weights is None
    weights = weights or folder.weights
    recipe = folder.resolved()
    model = _model(recipe["model"], folder.recipe)
    in_bf16 = precision.choose(recipe["train"]["precision"]).name == precision.BF16
    shared = {"name": str(weights), "max_length": recipe["data"]["max_length"], "in_bf16": in_bf16}
    if find_heads(weights):
        found = _heads(weights, model, recipe["train"]["precision"], shared)
    else:
        found = _policy(weights, model, shared, is_whole)
    if is_final:  # snapshots of a run are many
        _check_base(folder, model, found)
    return found


def check(run: str | Path, weights: Path | None = None) -> None:
    """Raises UserError if there is no finished run, or no such `weights` of it."""
    folder = RunFolder(run)
    if not folder.recipe.is_file() or not any(((weights or folder.weights) / name).is_file() for name in _WEIGHTS):
        what = "is no finished run: it has no recipe.yaml and final/"
        raise UserError(shorten(str(run), 160), what, "name the folder that a run wrote (output)")


def weights_hash(run: str | Path) -> str:
    """SHA-256 over the files of the final weights of a run: what a measurement is of."""
    digest, final = hashlib.sha256(), RunFolder(run).weights
    for file in sorted(final.rglob("*.safetensors")):
        digest.update(f"{file.relative_to(final)}\n".encode())
        with open(file, "rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()


def _model(given: dict, where: Path) -> Model:
    adapter = given.get("adapter")
    try:
        return Model(**{**given, "adapter": adapter and Adapter(**adapter)})
    except TypeError as error:
        what = f"model is not as this version writes it: {shorten(error)}"
        raise UserError(shorten(str(where), 160), what, "mend it, or use the version that wrote it") from None


def _check_base(folder: RunFolder, model: Model, found: Subject) -> None:
    """Raises UserError if the base is no longer what the run began with.

    Weights that are held in another type here than in the run (`train.precision: auto`) cannot be compared.
    """
    environment, base = read_json(folder.environment), causal_lm(found.heads[BASE].model)
    was_in_bf16 = environment.get("precision") == precision.BF16 and model.adapter is not None
    is_in_bf16 = base.get_input_embeddings().weight.dtype == torch.bfloat16
    known = environment.get("start_weights_sha256")
    if known and was_in_bf16 == is_in_bf16 and models.weights_hash(base) != known:
        what = f"holds other weights than those that {shorten(str(folder.path), 160)} began with"
        raise UserError(shorten(model.path, 160), what, "put them back, or say in its recipe.yaml where they are now")


def _heads(weights: Path, model: Model, arithmetic: str, shared: dict) -> Subject:
    ratio = likelihood_ratio.LikelihoodRatioModel.from_pretrained(weights, model=model, arithmetic=arithmetic)
    scores, has = {BASE: {BASE: 1.0}}, set(ratio.heads)
    if "positive" in has:
        scores["positive"] = {"positive": 1.0}
    if "negative" in has:
        scores["negative"] = {"negative": -1.0}
        if "positive" in has:
            scores["ratio to base"] = {BASE: ratio.positive_weight, "negative": -ratio.negative_weight}
        first = "positive" if "positive" in has else BASE
        scores[RATIO] = {first: ratio.positive_weight, "negative": -ratio.negative_weight}
    return Subject(
        tokenizer=ratio.tokenizer, heads=ratio.heads, scores=scores, layout=ratio.layout, **shared
    )  # fmt: skip


def _policy(weights: Path, model: Model, shared: dict, is_whole: bool) -> Subject:
    is_adapter = (weights / ADAPTER_FILE).is_file()  # a LoRA run may have been merged into full weights
    dtype = torch.bfloat16 if shared["in_bf16"] and is_adapter and not is_whole else torch.float32
    base, device = models.load_model(model, dtype=dtype), "cuda" if torch.cuda.is_available() else "cpu"
    if is_adapter and not is_whole:
        policy = models.load_adapters(base, {POLICY: weights})
        Routing({POSITIVE: POLICY}, POSITIVE).attach(policy)
        heads = {BASE: Head(policy, 0), POLICY: Head(policy, POSITIVE)}
    else:
        own = dataclasses.replace(model, path=str(weights), revision=None)
        policy = models.load_merged(model, weights) if is_adapter else models.load_model(own, dtype=dtype)
        heads = {BASE: Head(base, 0), POLICY: Head(policy, POSITIVE)}
    layouts = {layout_for(head.model.to(device).eval(), shared["max_length"]) for head in heads.values()}
    prefix = weights / PREFIX_FILE
    return Subject(
        tokenizer=models.load_tokenizer(model), heads=heads, scores={BASE: {BASE: 1.0}, POLICY: {POLICY: 1.0}},
        layout=PADDED if PADDED in layouts else PACKED,
        prefix=prefix.read_text(encoding="utf-8").strip() if prefix.is_file() else None, **shared,
    )  # fmt: skip
