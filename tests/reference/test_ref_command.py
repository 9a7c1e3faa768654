"""`align ref`: what is in a store, whether it is whole, and carrying it elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from align import cli
from align.errors import UserError
from align.reference.store import Store, default_folder
from tests.reference.test_store import OTHER, WHO, filled, held, key, part, values


@pytest.fixture
def store(tmp_path):
    """A folder with 20 entries of one reference in two parts, and 3 of another one."""
    folder = tmp_path / "store"
    filled(folder, 12)
    filled(folder, 8, first=12, rank=1)
    Store(folder, OTHER, dtype="float16").put({key(n): values(n) for n in range(3)})
    return folder


def flip(file, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def ref(*words: object) -> None:
    cli.run(["ref", *map(str, words)])


def test_stat(store, capsys):
    ref("stat", store)
    first, one, other = capsys.readouterr().out.splitlines()
    tokens = sum(len(values(n)) for n in range(20))
    assert first == f"{store}: 2 references"
    assert one.startswith(f"  {WHO[:16]}  20 entries, {tokens} tokens, ") and one.endswith(" in 2 parts")
    assert other.startswith(f"  {OTHER[:16]}  3 entries, {1 + 2 + 3} tokens, ") and other.endswith(" in 1 parts")


def test_the_default_is_the_store_of_auto(store, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    store.rename(default_folder())
    ref("stat")
    assert f"{tmp_path / 'reference'}: 2 references" in capsys.readouterr().out
    ref("verify")


def test_verify_a_whole_store(store, capsys):
    ref("verify", store)
    assert capsys.readouterr().out == "23 entries are whole, 0 places are damaged\n"


def test_verify_tells_part_and_offset(store, capsys):
    flip(part(store, OTHER), 48 + 48 + 1)  # the values of its first record, behind the label and a head
    with pytest.raises(SystemExit) as stopped:
        ref("verify", store)
    told, summary = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 1
    assert told == f"{part(store, OTHER)}: byte 48: the checksum is wrong"
    assert summary.startswith("22 entries are whole, 1 places are damaged")


def test_verify_tells_a_cut_off_end_and_a_foreign_file(store, capsys):
    cut = part(store, OTHER)
    cut.write_bytes(cut.read_bytes()[:-3])
    (store / WHO / "part-z.bin").write_bytes(b"not ours" * 20)
    with pytest.raises(SystemExit):
        ref("verify", store)
    out = capsys.readouterr().out
    assert f"{store / WHO / 'part-z.bin'}: byte 0: the last 160 bytes are no whole record" in out
    assert f"{cut}: byte " in out and "22 entries are whole, 2 places are damaged" in out


def test_export_and_import_carry_every_entry_once(store, tmp_path, capsys):
    file, target = tmp_path / "carried.ref", tmp_path / "target"
    filled(store, 5, rank=7)  # copies of the first five, by a run that did not see them
    Store(store, WHO, rank=8)._append([b""])
    ref("export", store, file)
    assert "23 entries of 2 references" in capsys.readouterr().out
    ref("import", file, target)
    assert capsys.readouterr().out == "23 entries added, 0 were there, 0 places were damaged\n"
    assert held(Store(target, WHO), 30) == list(range(20))
    for folder in (store, target):  # float16 stays float16
        assert Store(folder, OTHER).get([key(2)]) == [None]
        assert np.array_equal(Store(folder, OTHER, dtype="float16").get([key(2)])[0], values(2).astype("f2"))
    ref("import", file, target)
    assert capsys.readouterr().out == "0 entries added, 23 were there, 0 places were damaged\n"
    ref("verify", target)


def test_export_leaves_damaged_entries_out(store, tmp_path, capsys):
    flip(part(store, OTHER), 48 + 48 + 1)
    ref("export", store, tmp_path / "out")
    assert "22 entries" in capsys.readouterr().out
    ref("import", tmp_path / "out", tmp_path / "target")


@pytest.mark.parametrize("at", range(0, 3000, 97))
def test_import_checks_every_record(store, tmp_path, capsys, at):
    """A bit flipped anywhere in the file, also in a label: one place is told, nothing wrong gets in."""
    file, target = tmp_path / "carried.ref", tmp_path / "target"
    ref("export", store, file)
    flip(file, at % file.stat().st_size)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        ref("import", file, target)
    assert stopped.value.code == 1
    assert "no record" in (out := capsys.readouterr().out) or "checksum" in out
    added = held(Store(target, WHO), 30)
    others = Store(target, OTHER, dtype="float16").get([key(n) for n in range(3)])
    for number, found in enumerate(others):
        assert found is None or np.array_equal(found, values(number).astype("f2"))
    assert len(added) + sum(found is not None for found in others) in (22, 20, 3)  # a label costs what it labels


@pytest.mark.parametrize(
    "words, told",
    [
        (("stat", "nowhere"), "align ref: nowhere: no such folder"),
        (("verify", "nowhere"), "align ref: nowhere: no such folder"),
        (("export", "nowhere", "out"), "align ref: nowhere: no such folder"),
        (("export", "{store}", "{store}"), "exists already"),
        (("export", "{store}", "{store}/no/out"), "No such file or directory"),
        (("import", "nowhere", "{store}"), "align ref import: nowhere: no such file"),
        (("import", "{file}", "{file}/sub"), "Not a directory"),
        (("grow",), "invalid choice: 'grow'"),
        ((), "arguments are required: ACTION"),
    ],
)
def test_mistakes_of_the_user(store, tmp_path, words, told):
    file = tmp_path / "carried.ref"
    ref("export", store, file)
    with pytest.raises(UserError) as error:
        ref(*(word.format(store=store, file=file) for word in words))
    assert told in str(error.value) and "\n" not in str(error.value)


RECIPE = """
name: x
model: {{path: {model}}}
data: {{sources: [builtin:pairs]}}
reference: {reference}
objective: {{name: {objective}}}
output: out
"""


@pytest.mark.parametrize(
    "objective, reference, told",
    [
        ("simpo", "{}", "objective: 'simpo' asks no reference"),
        ("dpo", "{store: off}", "reference.store: is off"),
        ("dpo", "{store: off, store_dtype: float16}", "reference.store_dtype: types a store that is off"),
        ("dpo", "{store: atuo}", "reference.store: atuo is no folder; did you mean 'auto'?"),
        ("dpo", "{store: ''}", "is not a folder"),
        ("dpo", "{store: RECIPE}", "is not a folder"),
        ("dpo", "{store_dtype: float8}", "reference.store_dtype: 'float8' is not"),
    ],
)
def test_recipes_that_cannot_be_built(tmp_path, tiny_model, objective, reference, told):
    file = tmp_path / "recipe.yaml"
    reference = reference.replace("RECIPE", str(file))
    file.write_text(RECIPE.format(model=tiny_model, objective=objective, reference=reference))
    with pytest.raises(UserError) as error:
        ref("build", file)
    assert told in str(error.value) and len(error.value.each()) == 1
