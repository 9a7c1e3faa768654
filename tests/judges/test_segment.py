"""Where answers are cut: at lines, sentences and markers, never inside a formula."""

import random

import pytest

from align.judges.segment import segment


def pieces(text: str, how: str = "auto") -> list[str]:
    ends = segment(text, how)
    return [text[begin:end] for begin, end in zip((0, *ends), ends, strict=False)]


def test_lines_keep_the_break_behind_them():
    assert pieces("1+1=2\n2+2=4\n\n4+4=8", "lines") == ["1+1=2\n", "2+2=4\n\n", "4+4=8"]


def test_sentences_are_not_cut_at_abbreviations_decimals_and_numbers_of_a_list():
    text = "Pi is 3.14, e.g. in schools. Mr. Fox has 2! Is it so? Yes."
    assert pieces(text, "sentences") == ["Pi is 3.14, e.g. in schools. ", "Mr. Fox has 2! ", "Is it so? ", "Yes."]
    assert pieces("1. Add two.\n2. Take one.", "sentences") == ["1. Add two.\n", "2. Take one."]


def test_markers():
    text = "We count.\nStep 1: add 2.\nStill adding.\n**Step 2:** take 1.\n3. done"
    assert pieces(text, "markers") == [
        "We count.\n",
        "Step 1: add 2.\nStill adding.\n",
        "**Step 2:** take 1.\n",
        "3. done",
    ]
    assert pieces("First, add. \nThen, take.\nFinally, stop", "markers") == [
        "First, add. \n",
        "Then, take.\n",
        "Finally, stop",
    ]


@pytest.mark.parametrize(
    "formula",
    [
        "\\[a = b.\nSo c. D\\]",
        "$$x.\n\nY$$",
        "\\begin{align}a &= b. C\\\\\n d\\end{align}",
        "$f(x). G = 2$",
        "```\na\n\nb\n```",
    ],
)
def test_formulas_and_code_stay_whole(formula):
    text = f"Look. {formula} It holds. Done."
    for how in ("lines", "sentences"):
        assert any(formula in piece for piece in pieces(text, how)), pieces(text, how)


def test_money_is_no_formula():
    assert pieces("She pays $5. He pays $6. Fine.", "sentences") == ["She pays $5. ", "He pays $6. ", "Fine."]


def test_auto_takes_markers_then_lines_then_sentences():
    assert len(pieces("Step 1: a. B.\nc\nStep 2: d")) == 2
    assert len(pieces("a. B.\nc\nd")) == 3
    assert len(pieces("It is one. It is two.")) == 2


def test_bare_punctuation_is_no_step():
    assert pieces("---\n1+1=2\n---\n2+2=4\n...", "lines") == ["---\n1+1=2\n---\n", "2+2=4\n..."]


def test_ends_rise_to_the_length_whatever_the_text():
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(
            draw.choice(["a", "1", ".", " ", "\n", "$", "\\[", "\\]", "Step 1:", "é", "。", "```"]) for _ in range(30)
        )
        for how in ("auto", "lines", "sentences", "markers"):
            ends = segment(text, how)
            assert list(ends) == sorted(set(ends)) and all(0 < end <= len(text) for end in ends)
            assert not text.strip() or ends[-1] == len(text)
