"""A recipe means what it says, and every mistake in it is one line with its place and the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from align import objectives, recipe
from align.data.sources import HELD_OUT
from align.errors import UserError
from align.objectives.d2o import D2O
from align.objectives.dpo import DPO
from align.schema import field_names

HEAD = """\
name: my run
objective: {name: d2o}
output: runs/mine
data: {sources: [builtin:unwanted]}
"""
AFTER_HEAD = 5  # the line behind HEAD


@pytest.fixture
def write(tmp_path):
    """Writes a recipe and returns its path."""

    def go(text: str, name: str = "r.yaml") -> Path:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return go


@pytest.fixture
def loaded(write):
    """The recipe HEAD with more text behind it."""
    return lambda more="", *overrides: recipe.load(write(HEAD + more), list(overrides))


@pytest.fixture
def errors_of(write, monkeypatch, tmp_path):
    """The lines that a whole recipe's text is refused with; its file is `r.yaml`, in the current folder."""
    monkeypatch.chdir(tmp_path)

    def go(text: str, *overrides: str) -> list[str]:
        write(text)
        with pytest.raises(UserError) as error:
            recipe.load("r.yaml", list(overrides))
        return str(error.value).split("\n")

    return go


@pytest.fixture
def errors(errors_of):
    """The same for HEAD with more text behind it."""
    return lambda more="", *overrides: errors_of(HEAD + more, *overrides)


# What a recipe that says little means


def test_defaults(loaded):
    it = loaded()
    assert (it.name, it.output) == ("my run", "runs/mine")
    assert (it.model.path, it.model.revision, it.model.adapter) == ("smollm2-135m-instruct", None, None)
    assert it.model.trust_remote_code is False
    assert [(source.path, source.split, source.weight) for source in it.data.sources] == [
        ("builtin:unwanted", "train", 1.0)
    ]
    assert (it.data.max_length, it.data.on_bad_rows) == (1024, "stop")
    assert (it.sampling.k, it.sampling.temperature, it.sampling.top_p, it.sampling.max_new_tokens) == (4, 1.0, 1.0, 64)
    assert (it.sampling.every, it.sampling.instruction) == (0, None)
    assert (it.train.learning_rate, it.train.epochs, it.train.max_steps) == (1e-4, 1.0, None)
    assert (it.train.prompts_per_step, it.train.tokens_per_device, it.train.seed) == (16, 4096, 0)
    assert (it.train.save_every, it.train.resume, it.train.precision, it.train.hf) == (0, False, "auto", {})
    assert (it.eval.every, it.reference.samples) == (0, None)


def test_defaults_of_an_adapter(loaded):
    adapter = loaded("model: {adapter: {}}\n").model.adapter
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.targets) == (16, None, 0.0, "all-linear")


def test_a_section_left_empty_is_a_section_of_defaults(loaded):
    assert loaded("train:\nsampling:\nguard:\n") == loaded()


def test_a_loaded_recipe_is_frozen(loaded):
    it = loaded()
    for part in (it, it.model, it.data, it.data.sources[0], it.reference, it.sampling, it.train, it.eval):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field_names(type(part))[0] if field_names(type(part)) else "name", "other")


def test_two_recipes_share_no_lists(loaded):
    loaded().train.hf["warmup_steps"] = 3
    assert loaded().train.hf == {}


def test_objective_with_its_parameters(loaded):
    it = loaded("", "objective={name: d2o, alpha: 0.3}")
    assert it.objective == {"name": "d2o", "alpha": 0.3, "beta": D2O().beta}
    assert it.build_objective() == D2O(alpha=0.3)


def test_objective_of_another_name(loaded):
    it = loaded("", "objective.name=dpo", "data.sources=[builtin:pairs]")
    assert it.build_objective() == DPO() and it.objective["name"] == "dpo"


# YAML with two repairs


@pytest.mark.parametrize(
    "text, number",
    [("5e-7", 5e-7), ("1E-4", 1e-4), ("1e2", 100.0), ("2.0e-4", 2e-4), (".5", 0.5), ("3.", 3.0), ("3", 3.0)],
)
def test_numbers(loaded, text, number):
    it = loaded(f"train: {{learning_rate: {text}}}\n")
    assert it.train.learning_rate == number and type(it.train.learning_rate) is float
    assert loaded("", f"train.learning_rate={text}") == it


def test_a_whole_float_is_a_whole_number(loaded):
    it = loaded("train: {max_steps: 1e3}\n")
    assert it.train.max_steps == 1000 and type(it.train.max_steps) is int


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "y", "Off", "ON", "e5", "1e", "5e-7x"])
def test_words(loaded, word):
    assert loaded("", f"name={word}").name == word


def test_words_in_the_file(write):
    assert recipe.load(write(HEAD.replace("my run", "off"))).name == "off"


@pytest.mark.parametrize("text, value", [("true", True), ("True", True), ("false", False), ("False", False)])
def test_true_and_false_are_truth_values(loaded, text, value):
    assert loaded(f"model: {{trust_remote_code: {text}}}\n").model.trust_remote_code is value


# Overrides


def test_override_of_a_value(loaded):
    it = loaded("train: {epochs: 3, seed: 1}\n", "train.epochs=2", "sampling.k=8")
    assert (it.train.epochs, it.train.seed, it.sampling.k) == (2.0, 1, 8)


def test_override_of_a_list(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").touch()
    it = loaded("", "data.sources=[my.jsonl, {path: builtin:pairs, weight: 0.5}]")
    given = [("my.jsonl", "train", 1.0), ("builtin:pairs", "train", 0.5)]
    assert [(source.path, source.split, source.weight) for source in it.data.sources] == given


def test_override_with_null(loaded):
    more = "model: {adapter: {rank: 4}}\n"
    assert loaded(more).model.adapter.rank == 4
    assert loaded(more, "model.adapter=null").model.adapter is None


def test_override_makes_sections_that_are_not_there(loaded):
    assert loaded("", "model.adapter.rank=4").model.adapter.rank == 4
    assert loaded("model:\n", "model.adapter.rank=4").model.adapter.rank == 4


def test_the_last_override_counts(loaded):
    assert loaded("", "name=a", "name=b").name == "b"


def test_override_value_may_hold_an_equals_sign(loaded):
    assert loaded("", "sampling.instruction=say a=b").sampling.instruction == "say a=b"


@pytest.mark.parametrize(
    "override, line",
    [
        ("epochs", "command line: epochs: is not key=value; write, for example, train.epochs=2"),
        ("=2", "command line: =2: is not key=value; write, for example, train.epochs=2"),
        ("name.x=1", "command line: name.x=1: 'name' has no keys; write name=..."),
        ("data.sources.0.path=a", "command line: data.sources.0.path=a: 'sources' has no keys; write sources=..."),
        ("name=[1", "command line: name=[1: the value is not valid YAML; quote it for the shell and for YAML"),
        ("name=1", "command line: name: 1 is not text; Name of the run."),
        ("train.epochs=0", "command line: train.epochs: 0 is out of range; it must be above 0"),
        ("train={epochs: 0}", "command line: train.epochs: 0 is out of range; it must be above 0"),
        ("trian.epochs=1", "command line: trian: unknown key; did you mean 'train'?"),
        ("objective.betta=1", "command line: objective.betta: unknown key; did you mean 'beta'?"),
        (
            "data.sources=[my.jsonl]",
            "command line: data.sources[0].path: my.jsonl: no such file; "
            "give an existing file, a glob, a hub id or builtin:unwanted",
        ),
    ],
)
def test_errors_of_overrides(errors, override, line):
    assert errors("", override) == [line]


def test_error_beside_an_override_keeps_its_line(errors):
    said = errors("train:\n  epochs: -1\n  seed: -2\n", "train.epochs=0")
    assert said == [
        "command line: train.epochs: 0 is out of range; it must be above 0",
        f"r.yaml:{AFTER_HEAD + 2}: train.seed: -2 is out of range; it must be at least 0",
    ]


# What is left open is filled in


def test_reference_is_the_model_without_its_adapter_or_a_copy(loaded):
    assert loaded("model: {adapter: {rank: 2}}\n").reference.policy == "adapter_off"
    assert loaded().reference.policy == "frozen"


@pytest.mark.parametrize("given", ["frozen", "adapter_off", "owner/name"])
def test_reference_that_is_given_stays(loaded, given):
    more = f"model: {{adapter: {{rank: 2}}}}\nreference: {{policy: {given}}}\n"
    assert loaded(more).reference.policy == given


def test_no_reference_for_an_objective_that_uses_none(loaded, lab):
    assert loaded("", f"objective={{name: {lab}.plain}}").reference.policy is None


def eval_sources(it: recipe.Recipe) -> list[tuple[str, str, float]]:
    return [(source.path, source.split, source.weight) for source in it.eval.sources]


BENIGN = ("builtin:benign", HELD_OUT, 1.0)


def test_eval_of_builtin_rows_is_their_held_out_part_and_benign(loaded):
    it = loaded("", "data.sources=[{path: builtin:unwanted, weight: 2}, builtin:pairs]")
    expected = [("builtin:unwanted", HELD_OUT, 1.0), ("builtin:pairs", HELD_OUT, 1.0), BENIGN]
    assert (eval_sources(it), it.eval.holdout) == (expected, 0.1)


def test_eval_of_a_file_is_a_tenth_of_it_and_benign(loaded, tmp_path):
    file = tmp_path / "my.jsonl"
    file.touch()
    it = loaded("", f"data.sources=[{file}]")
    assert (eval_sources(it), it.eval.holdout) == ([BENIGN], 0.1)


def test_eval_sources_that_are_given_stay_and_nothing_is_held_out(loaded):
    it = loaded("eval: {sources: [{path: builtin:pairs, split: heldout}]}\n")
    assert (eval_sources(it), it.eval.holdout) == ([("builtin:pairs", HELD_OUT, 1.0)], 0.0)
    assert eval_sources(loaded("eval: {sources: []}\n")) == []


@pytest.mark.parametrize("more", ["eval: {holdout: 0.3}\n", "eval: {holdout: 0.3, sources: []}\n"])
def test_holdout_that_is_given_stays(loaded, more):
    assert loaded(more).eval.holdout == 0.3


# The resolved recipe reads as itself

FULL = """\
name: full
model: {path: owner/name, revision: main, adapter: {rank: 8, alpha: 5e-1, dropout: 0.1, targets: [q_proj, v_proj]}}
data: {sources: [{path: builtin:pairs, weight: 0.5}, builtin:unwanted], max_length: 512, on_bad_rows: skip}
reference: {policy: frozen, samples: adapter_off}
sampling: {k: 2, temperature: 0.7, top_p: 0.9, max_new_tokens: 8, every: 5, instruction: "Sag: 'ja' – off #1\\n"}
objective: {name: d2o, alpha: 5e-7, beta: 0}
train: {learning_rate: 5e-7, max_steps: 3, resume: some/folder, precision: bf16, hf: {warmup_steps: 2, optim: sgd}}
eval: {every: 2, sources: [{path: builtin:benign, split: heldout}], holdout: 0.2, generate: 0}
output: runs/full
"""


@pytest.mark.parametrize("objective", ["d2o", "dpo"])
def test_resolved_recipe_round_trips(loaded, write, objective):
    it = loaded("model: {adapter: {rank: 2}}\n", f"objective.name={objective}", "data.sources=[builtin:pairs]")
    assert recipe.load(write(it.to_yaml(), "resolved.yaml")) == it


def test_resolved_recipe_round_trips_without_reference(loaded, write, lab):
    it = loaded("", f"objective={{name: {lab}.plain}}")
    assert recipe.load(write(it.to_yaml(), "resolved.yaml")) == it


def test_full_recipe_round_trips(write):
    it = recipe.load(write(FULL))
    again = recipe.load(write(it.to_yaml(), "resolved.yaml"))
    assert again == it and again.to_yaml() == it.to_yaml()


@pytest.mark.parametrize("name", ["off", "5e-7", "1e5", "2024-12-25", "null", "12", "a: b", "ü #1", "true", "~", " a"])
def test_any_name_round_trips(write, name):
    """A run may well be called by its learning rate."""
    it = recipe.load(write(HEAD.replace("my run", repr(name))))
    assert it.name == name
    assert recipe.load(write(it.to_yaml(), "resolved.yaml")).name == name


def test_resolved_recipe_says_everything(loaded):
    data = yaml.safe_load(loaded("retain: {sources: [builtin:retain]}\n").to_yaml())
    absent = {
        "warm_start",
        "rollouts",
        "judges",
        "mining",
        "degrade",
        "repair",
    }  # sections that are null where rows are given
    assert list(data) == [name for name in field_names(recipe.Recipe) if name not in absent]
    for section, cls in (("model", recipe.Model), ("train", recipe.Train), ("sampling", recipe.Sampling)):
        assert list(data[section]) == field_names(cls)
    assert data["objective"] == {"name": "d2o", **dataclasses.asdict(D2O())}


# Errors: shape of the file


def test_no_such_recipe(tmp_path):
    with pytest.raises(UserError) as error:
        recipe.load(tmp_path / "absent.yaml")
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/absent.yaml: cannot be read: ") and "No such file or directory" in said
    assert said.endswith("; name a recipe file (YAML)")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
def test_empty_recipe(errors_of, text):
    assert errors_of(text) == [
        "r.yaml:1: name: is missing; Name of the run.",
        "r.yaml:1: objective: is missing; name, and the objective's hyper-parameters.",
        "r.yaml:1: output: is missing; The run folder.",
    ]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_recipe_that_is_no_mapping(errors_of, text):
    assert errors_of(text) == ["r.yaml:1: a recipe is a mapping of sections; start with 'name:' and 'model:'"]


@pytest.mark.parametrize(
    "more, line",
    [
        ("train: [1\n", "6: not valid YAML: expected ',' or ']', but got '<stream end>'; mend the line"),
        (
            "train:\n\tepochs: 1\n",
            "6: not valid YAML: found character '\\t' that cannot start any token; mend the line",
        ),
        ("train: {epochs: 1}}\n", "5: not valid YAML: expected <block end>, but found '}'; mend the line"),
        ("train: *nobody\n", "5: not valid YAML: found undefined alias 'nobody'; mend the line"),
        ("---\nname: b\n", "5: not valid YAML: but found another document; mend the line"),
    ],
)
def test_bad_yaml(errors, more, line):
    assert errors(more) == [f"r.yaml:{line}"]


def test_yaml_that_would_run_code_is_refused(errors):
    (line,) = errors("train: {hf: {a: !!python/object/apply:os.getcwd []}}\n")
    assert line.startswith("r.yaml:5: not valid YAML: could not determine a constructor for the tag")


@pytest.mark.parametrize(
    "more, expected_line",
    [
        ("model: {path: {{folder}}}\n", 5),  # a template that was not filled in
        ("? [a, b]\n: 1\n", 5),
        ("train: {hf: {a: 2024-13-45}}\n", 5),  # looks like a date, but is none
        ("# a terminal escape \x1b[31m\n", None),  # YAML allows no control characters, not even in comments
        ("train: &a {hf: *a}\n", 5),
    ],
    ids=["braces", "list-as-key", "no-date", "control-character", "recursion"],
)
def test_slips_that_only_yaml_could_explain_are_one_line(errors, more, expected_line):
    (line,) = errors(more)
    assert line.startswith(f"r.yaml:{expected_line}: " if expected_line else "r.yaml:")


def test_a_date_is_plain_text(loaded):
    """A run may be named after a day, also one that is in no calendar: YAML's own dates would refuse it."""
    assert loaded("", "name=2024-13-45").name == "2024-13-45"


def test_duplicate_keys(errors):
    more = "train:\n  epochs: 1\n  seed: 1\n  epochs: 2\nname: other\n"
    assert errors(more) == [
        "r.yaml:8: train.epochs: given twice; first at r.yaml:6; keep one",
        "r.yaml:9: name: given twice; first at r.yaml:1; keep one",
    ]


def test_duplicate_key_in_a_source(errors_of):
    text = "data:\n  sources:\n  - path: a\n  - path: b\n    path: c\n"
    assert errors_of(text) == ["r.yaml:5: data.sources[1].path: given twice; first at r.yaml:4; keep one"]


# Errors: names


@pytest.mark.parametrize(
    "more, line",
    [
        ("trian: {}\n", "5: trian: unknown key; did you mean 'train'?"),
        ("train:\n  epochs: 1\n  sed: 1\n", "7: train.sed: unknown key; did you mean 'seed'?"),
        ("model: {adapter: {rnak: 1}}\n", "5: model.adapter.rnak: unknown key; did you mean 'rank'?"),
        ("eval:\n  sources:\n  - {pth: a, path: builtin:benign, split: heldout}\n",
         "7: eval.sources[0].pth: unknown key; did you mean 'path'?"),
    ],
)  # fmt: skip
def test_unknown_key_with_near_miss(errors, more, line):
    assert errors(more) == [f"r.yaml:{line}"]


def test_unknown_key_of_the_objective(errors_of):
    text = HEAD.replace("{name: d2o}", "\n  name: d2o\n  alpha: 0.1\n  betta: 0.1")
    assert errors_of(text) == ["r.yaml:5: objective.betta: unknown key; did you mean 'beta'?"]


def test_parameter_of_another_objective(errors):
    said = errors("", "objective={name: dpo, zzz: 0.1}")
    known = ", ".join(sorted(field_names(DPO)))
    assert said == [f"command line: objective.zzz: unknown key; known here: {known}"]


def test_unknown_key_without_near_miss_lists_what_there_is(errors):
    known = ", ".join(sorted(field_names(recipe.Adapter)))
    assert errors("model: {adapter: {zzz: 1}}\n") == [f"r.yaml:5: model.adapter.zzz: unknown key; known here: {known}"]


def test_unknown_key_that_is_a_number_has_its_line(errors):
    (line,) = errors("model:\n  adapter:\n    rank: 2\n    1: 2\n")
    assert line.startswith("r.yaml:8: ") and "unknown key" in line


# Errors: types and ranges


@pytest.mark.parametrize(
    "more, line",
    [
        ("train: {epochs: often}\n", "train.epochs: often is not a number; Passes over the prompts."),
        ("train: {epochs: [1]}\n", "train.epochs: [1] is not a number; Passes over the prompts."),
        ("train: {epochs: true}\n", "train.epochs: True is not a number; Passes over the prompts."),
        ("sampling: {k: 2.5}\n", "sampling.k: 2.5 is not a whole number; Samples a prompt."),
        ("sampling: {k: '2'}\n", "sampling.k: 2 is not a whole number; Samples a prompt."),
        ("sampling: {k: true}\n", "sampling.k: True is not a whole number; Samples a prompt."),
        (
            "train: {max_steps: few}\n",
            "train.max_steps: few is not a whole number or null; "
            "Stop after this many optimiser steps; null: by epochs.",
        ),
        (
            "train: {resume: 3}\n",
            "train.resume: 3 is not true or false or text; "
            "true (newest checkpoint, or the start) or a checkpoint folder.",
        ),
        (
            "model: {trust_remote_code: yes}\n",
            "model.trust_remote_code: yes is not true or false; Run Python code that comes with the model.",
        ),
        ("train: {hf: [1]}\n", "train.hf: [1] is not a mapping; Any other field of transformers.TrainingArguments."),
        ("train: fast\n", "train: fast is not a section; write keys: " + ", ".join(field_names(recipe.Train))),
        ("guard: [1]\n", "guard: [1] is not a section; write keys: " + ", ".join(field_names(recipe.Guard))),
        (
            "model: {adapter: 16}\n",
            "model.adapter: 16 is not a section; write keys: " + ", ".join(field_names(recipe.Adapter)),
        ),
        ("model: {adapter: {targets: [a, 3]}}\n", "model.adapter.targets[1]: 3 is not text"),
        ("model: {adapter: {rank: 0}}\n", "model.adapter.rank: 0 is out of range; it must be at least 1"),
        (
            "model: {adapter: {dropout: 1}}\n",
            "model.adapter.dropout: 1 is out of range; it must be at least 0 and below 1",
        ),
        ("sampling: {k: 0}\n", "sampling.k: 0 is out of range; it must be at least 1"),
        ("sampling: {top_p: 1.5}\n", "sampling.top_p: 1.5 is out of range; it must be above 0 and at most 1"),
        ("train: {learning_rate: -5e-7}\n", "train.learning_rate: -5e-07 is out of range; it must be above 0"),
        ("train: {learning_rate: .nan}\n", "train.learning_rate: nan is out of range; it must be above 0"),
        (
            "train: {precision: fp8}\n",
            "train.precision: 'fp8' is not one of auto, fp32, bf16; did you mean 'fp32'?",
        ),
        (
            "eval: {sources: builtin:benign}\n",
            "eval.sources: builtin:benign is not a list or null; "
            "Held-out rows; null: the sources' own held-out part, builtin:benign.",
        ),
    ],
)
def test_wrong_type_or_range(errors, more, line):
    assert errors(more) == [f"r.yaml:{AFTER_HEAD}: {line}"]


@pytest.mark.parametrize(
    "sources, line",
    [
        ("my.jsonl", "4: data.sources: my.jsonl is not a list; Where rows come from."),
        ("[3]", "4: data.sources[0]: 3 is not a section; write keys: path, split, weight"),
        ("[{split: train}]", "4: data.sources[0].path: is missing; "
         "builtin:NAME, a JSONL(.gz, .zst), CSV, Parquet or JSON file, a glob, or a hub id."),
        ("[{path: builtin:pairs, weight: 0}]", "4: data.sources[0].weight: 0 is out of range; it must be above 0"),
        ("[]", "4: data.sources: names no data; give a file, a hub id or builtin:unwanted"),
    ],
)  # fmt: skip
def test_wrong_sources(errors_of, sources, line):
    assert errors_of(HEAD.replace("[builtin:unwanted]", sources)) == [f"r.yaml:{line}"]


def test_bad_rows_neither_stop_nor_skip(errors_of):
    said = errors_of(HEAD.replace("data: {", "data: {on_bad_rows: ignore, "))
    assert said == ["r.yaml:4: data.on_bad_rows: 'ignore' is not one of stop, skip; known here: skip, stop"]


def test_infinity_is_told_that_it_must_be_finite(errors):
    """It is above 0: a message that asks for no more than that would not help."""
    (line,) = errors("train: {learning_rate: .inf}\n")
    assert line.startswith("r.yaml:5: train.learning_rate: inf is out of range; it must be ") and "finite" in line


def test_a_whole_number_beyond_floats_is_out_of_range(errors):
    (line,) = errors(f"sampling: {{k: -1{'0' * 400}}}\n")
    assert line.startswith("r.yaml:5: sampling.k: ") and "out of range" in line


def test_a_control_character_in_a_value_is_shown_as_an_escape(errors):
    (line,) = errors('sampling: {k: "\\e[31mred"}\n')
    assert line == "r.yaml:5: sampling.k: \\x1b[31mred is not a whole number; Samples a prompt."


# Errors: the objective


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The name of a package of objectives outside the project: one that needs negatives only, and broken ones."""
    outside = tmp_path_factory.mktemp("outside")
    package = outside / "lab_of_test_recipe"
    package.mkdir()
    one = (
        "from dataclasses import dataclass\nfrom align.objectives import Objective\n"
        "@dataclass(frozen=True)\nclass {name}(Objective):\n    needs = ('negatives',)\n"
    )
    (package / "__init__.py").touch()
    (package / "plain.py").write_text(one.format(name="Plain"))
    (package / "two.py").write_text(one.format(name="One") + one.format(name="Two"))
    (package / "none.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(outside)
        yield package.name


def known_objectives() -> str:
    return ", ".join(objectives.available())


def test_unknown_objective(errors):
    said = errors("", "objective.name=d20")
    assert said == ["command line: objective.name: there is no objective 'd20'; did you mean 'd2o'?"]


def test_unknown_objective_has_its_line(errors_of):
    said = errors_of(HEAD.replace("d2o", "zzzzzz"))
    assert said == [f"r.yaml:2: objective.name: there is no objective 'zzzzzz'; known here: {known_objectives()}"]


def test_objective_without_a_name(errors_of):
    said = errors_of(HEAD.replace("{name: d2o}", "{alpha: 0.1}"))
    assert said == [f"r.yaml:2: objective.name: is missing; one of {known_objectives()}"]


@pytest.mark.parametrize("given", ["d2o", "[d2o]"])
def test_objective_that_is_no_mapping(errors_of, given):
    (line,) = errors_of(HEAD.replace("{name: d2o}", given))
    assert line.startswith("r.yaml:2: objective: ") and "is not a mapping" in line


@pytest.mark.parametrize(
    "parameters, line",
    [
        ("alpha: 0", "objective.alpha: 0 is out of range; it must be above 0"),
        ("alpha: much", "objective.alpha: much is not a number; "
         "Strength of the push on the negatives, per nat of log-ratio."),
        ("beta: -1", "objective.beta: -1 is out of range; it must be at least 0"),
    ],
)  # fmt: skip
def test_parameters_of_the_objective(errors_of, parameters, line):
    assert errors_of(HEAD.replace("name: d2o", f"name: d2o, {parameters}")) == [f"r.yaml:2: {line}"]


def test_objective_from_outside(loaded, lab):
    assert type(loaded("", f"objective={{name: {lab}.plain}}").build_objective()).__name__ == "Plain"


@pytest.mark.parametrize("module, count", [("two", 2), ("none", 0)])
def test_module_without_exactly_one_objective(errors, lab, module, count):
    (line,) = errors("", f"objective={{name: {lab}.{module}}}")
    what = f"{lab}.{module} defines {count} objectives, it must define exactly one"
    assert line.startswith(f"command line: objective.name: {what}; ")


@pytest.mark.parametrize("name", ["no_such_lab.foo", "lab_of_test_recipe.absent", "./my.py", "..foo", "my.py"])
def test_objective_that_cannot_be_found_outside(errors, lab, name):
    (line,) = errors("", f"objective={{name: {name}}}")
    assert line.startswith("command line: objective.name: ") and name in line


# Errors: fields that must agree

NO_ADAPTER = "adapter_off, but no adapter is trained; use frozen, or train a LoRA adapter (model.adapter)"


@pytest.mark.parametrize("key", ["policy", "samples"])
def test_adapter_off_without_adapter(errors, key):
    said = errors(f"reference:\n  {key}: adapter_off\n")
    assert said == [f"r.yaml:6: reference.{key}: {NO_ADAPTER}"]


def test_adapter_off_with_the_adapter_taken_away(errors):
    more = "model: {adapter: {rank: 2}}\nreference: {policy: adapter_off}\n"
    assert errors(more, "model.adapter=null") == [f"r.yaml:6: reference.policy: {NO_ADAPTER}"]


def test_reference_for_an_objective_that_uses_none(errors, lab):
    said = errors("reference: {policy: frozen}\n", f"objective={{name: {lab}.plain}}")
    assert said == [f"r.yaml:5: reference: objective '{lab}.plain' uses none; leave the section out"]


def test_sampling_for_an_objective_that_uses_none(errors):
    said = errors("sampling: {k: 2}\n", "objective.name=dpo")
    assert said == ["r.yaml:5: sampling: objective 'dpo' uses no samples; leave the section out"]


def test_reference_of_samples_for_an_objective_without_samples(errors):
    said = errors("reference: {samples: frozen}\n", "objective.name=dpo")
    assert said == ["r.yaml:5: reference.samples: objective 'dpo' uses no samples; leave it out"]


# Errors: what is named and not there

GIVE_MODEL = "give a folder, a .gguf file, a hub id (owner/name) or smollm2-135m-instruct"


@pytest.mark.parametrize(
    "path, line",
    [
        ("./nowhere", f"./nowhere: no such folder; {GIVE_MODEL}"),
        ("nowhere", f"nowhere: no such folder; {GIVE_MODEL}"),
        ("a/b/c", f"a/b/c: no such folder; {GIVE_MODEL}"),
        ("./nowhere.gguf", "./nowhere.gguf: no such file; give an existing .gguf file"),
        (".", ".: no config.json there; give a model's folder"),
    ],
)
@pytest.mark.parametrize("key", ["model.path", "reference.policy"])
def test_missing_model(errors, key, path, line):
    assert errors("", f"{key}={path}") == [f"command line: {key}: {line}"]


def test_model_that_is_there(loaded, tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "model.gguf").touch()
    for path in (tmp_path, tmp_path / "model.gguf"):
        assert loaded("", f"model.path={path}").model.path == str(path)


GIVE_DATA = "give an existing file, a glob, a hub id or builtin:unwanted"


@pytest.mark.parametrize("path", ["my.jsonl", "./owner/name", "*.jsonl"])
def test_missing_data_file(errors_of, path):
    text = HEAD.replace(
        "data: {sources: [builtin:unwanted]}", f"data:\n  sources:\n  - builtin:pairs\n  - path: '{path}'"
    )
    assert errors_of(text) == [f"r.yaml:7: data.sources[1].path: {path}: no such file; {GIVE_DATA}"]


def test_missing_eval_file(errors):
    said = errors("eval: {sources: [my.jsonl]}\n")
    assert said == [f"r.yaml:5: eval.sources[0].path: my.jsonl: no such file; {GIVE_DATA}"]


def test_unknown_builtin(errors_of):
    said = errors_of(HEAD.replace("unwanted", "unwantd"))
    assert said == ["r.yaml:4: data.sources[0].path: there is no 'builtin:unwantd'; did you mean 'unwanted'?"]


def test_unknown_split_is_told_at_its_own_line(errors_of):
    text = HEAD.replace(
        "data: {sources: [builtin:unwanted]}", "data:\n  sources:\n  - path: builtin:pairs\n    split: test"
    )
    expected = "r.yaml:7: data.sources[0].split: builtin:pairs has no split 'test'; it has train and heldout"
    assert errors_of(text) == [expected]


# Errors: TrainingArguments


def test_names_of_training_arguments_are_those_of_the_installed_version():
    from transformers import TrainingArguments

    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(recipe.training_argument_names()) == fields


def test_any_other_training_argument_is_taken(loaded):
    it = loaded("train: {hf: {warmup_steps: 5, weight_decay: 1e-2}}\n")
    assert it.train.hf == {"warmup_steps": 5, "weight_decay": 0.01}


def test_unknown_training_argument(errors):
    said = errors("train:\n  hf:\n    warmup_stepz: 5\n")
    what = "transformers.TrainingArguments has no such field; did you mean 'warmup_steps'?"
    assert said == [f"r.yaml:7: train.hf.warmup_stepz: {what}"]


@pytest.mark.parametrize(
    "name, where",
    [
        ("max_steps", "train.max_steps"),
        ("num_train_epochs", "train.epochs"),
        ("learning_rate", "train.learning_rate"),
        ("gradient_accumulation_steps", "train.tokens_per_device"),
        ("bf16", "train.precision"),
        ("output_dir", "output"),
        ("eval_steps", "eval.every"),
    ],
)
def test_training_argument_that_the_recipe_owns(errors, name, where):
    assert errors(f"train: {{hf: {{{name}: 1}}}}\n") == [
        f"r.yaml:5: train.hf.{name}: is not set here; say it at {where}"
    ]


def test_training_argument_that_is_no_text(errors):
    (line,) = errors("train: {hf: {1: 2}}\n")
    assert line.startswith("r.yaml:5: train.hf") and "transformers.TrainingArguments has no such field" in line


# All at once


def test_all_mistakes_of_keys_and_values_at_once(errors_of):
    text = """\
objective:
  name: d2o
  betta: 0.1
train:
  epochs: 0
  seed: one
sampling: {k: 0, kk: 1}
trian: {}
data: {sources: [builtin:unwanted]}
"""
    assert errors_of(text, "eval.every=-1") == [
        "r.yaml:8: trian: unknown key; did you mean 'train'?",
        "r.yaml:1: name: is missing; Name of the run.",
        "r.yaml:7: sampling.kk: unknown key; did you mean 'k'?",
        "r.yaml:7: sampling.k: 0 is out of range; it must be at least 1",
        "r.yaml:5: train.epochs: 0 is out of range; it must be above 0",
        "r.yaml:6: train.seed: one is not a whole number; Seed of everything random.",
        "command line: eval.every: -1 is out of range; it must be at least 0",
        "r.yaml:1: output: is missing; The run folder.",
        "r.yaml:3: objective.betta: unknown key; did you mean 'beta'?",
    ]


def test_all_mistakes_between_fields_at_once(errors):
    more = "model: {path: ./nowhere}\nreference: {policy: adapter_off}\ntrain: {hf: {seed: 1, sed: 2}}\n"
    places_and_names = [line.split(": ")[:2] for line in errors(more, "data.sources=[a.jsonl, b.jsonl]")]
    assert places_and_names == [
        ["command line", "data.sources[0].path"],
        ["command line", "data.sources[1].path"],
        ["r.yaml:6", "reference.policy"],
        ["r.yaml:5", "model.path"],
        ["r.yaml:7", "train.hf.seed"],
        ["r.yaml:7", "train.hf.sed"],
    ]


def test_mistakes_of_both_kinds_at_once(errors):
    """A missing file is told together with a misspelt key, not after it has been mended."""
    said = errors("trian: {}\nmodel: {path: ./nowhere}\ntrain: {epochs: 0}\n", "data.sources=[my.jsonl]")
    assert len(said) == 4
    for name in ("trian", "model.path", "train.epochs", "data.sources[0].path"):
        assert [line for line in said if f": {name}: " in line], name


def test_mistakes_of_overrides_and_file_at_once(errors):
    said = errors("trian: {}\n", "epochs", "name.x=1")
    assert len(said) == 3
    assert [line for line in said if line.startswith("r.yaml:5: trian: ")]
    assert [line for line in said if line.startswith("command line: epochs: ")]
    assert [line for line in said if line.startswith("command line: name.x=1: ")]
