"""Verifiers: what counts as right, what as undecided; programs under limits."""

import importlib.util
import time

import pytest

from align.data.examples import Example, Response
from align.errors import UserError
from align.judges import sandbox, verifiers
from align.judges.options import Verifier
from align.judges.verifiers import number_of


def example(*positives: str) -> Example:
    return Example("What is it?", tuple(Response(text, "positive") for text in positives), "test", "rows.jsonl:1")


def verdict(text: str, *positives: str, **options) -> bool | None:
    return verifiers.load(Verifier(**options))(example(*positives), text).is_right


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12+5=17\n17*3=51", 51), ("It is 51-13", 13), ("-4", -4), ("(9)-4", 4), ("so $1,234.50.", 1234.5),
        ("3/4", 0.75), ("\\boxed{42}", 42), ("about −7", -7), ("nothing", None), ("1/0", None), ("x2 and 10%", 10),
    ],
)  # fmt: skip
def test_the_last_number_counts(text, number):
    assert number_of(text) == number


def test_numbers_are_compared_by_value():
    assert verdict("= 0.50", "1/2") is True
    assert verdict("1000000", "1,000,001") is True  # within a millionth
    assert verdict("1000", "1001") is False
    assert verdict("I do not know", "3") is None
    assert verdict("7", "3", "7") is True  # any positive


def test_a_positive_without_a_number_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"rows.jsonl:1: no number in the positive"):
        verdict("3", "three")
    with pytest.raises(UserError, match="nothing says what is right"):
        verdict("3")


def test_exact_and_regex():
    assert verdict(" a  b\n", "a b", name="exact") is True
    assert verdict("A b", "a b", name="exact") is False
    pattern = r"Answer: (\w+)"
    assert verdict("Answer: no. Answer: yes", "Answer: yes", name="regex", pattern=pattern) is True
    assert verdict("Answer: no", "Answer: yes", name="regex", pattern=pattern) is False
    assert verdict("yes", "Answer: yes", name="regex", pattern=pattern) is None


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")
def test_mathematics():
    assert verdict(r"The answer is $\frac{2}{4}$", r"$\frac{1}{2}$", name="math") is True
    assert verdict(r"$x^2+1$", r"$1+x^2$", name="math") is True
    assert verdict(r"$x^2$", r"$x^3$", name="math") is False
    assert verdict("no idea", "$3$", name="math") is None


def test_code_is_run_with_its_tests():
    answer = "Sure:\n```python\ndef f(x):\n    return x + 1\n```\nDone."
    assert verdict(answer, "assert f(1) == 2", name="code") is True
    assert verdict(answer, "assert f(1) == 3", name="code") is False
    assert verdict("def f(x): return 2", "assert f(1) == 2", name="code") is True  # without a block


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)", "raise SystemExit(0)", "x = 'a' * 2**30", "print('x' * 10**8)",
        "open('f', 'wb').write(b'0' * 10**8)",
    ],
)  # fmt: skip
def test_programs_that_leave_early_or_take_too_much_do_not_pass(program):
    assert not sandbox.run(program, "", 5.0, 256).passed


def test_programs_end_with_all_they_started(tmp_path):
    """A loop is stopped in time, and so is a child that it left behind."""
    begun, alive = time.monotonic(), tmp_path / "alive"
    child = f"import os, time\nif os.fork() == 0:\n    time.sleep(3)\n    open({str(alive)!r}, 'w')\nwhile True: pass"
    assert not sandbox.run(child, "", 1.0, 256).passed
    assert time.monotonic() - begun < 8
    time.sleep(3.5)
    assert not alive.exists()


def test_programs_see_no_environment_and_no_network(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert sandbox.run("import os", "assert 'SECRET' not in os.environ", 5.0, 256).passed
    if sandbox.is_offline():
        reach = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))"
        assert not sandbox.run(reach, "", 5.0, 256).passed


def judge_length(prompt, text, positives):
    return {1: True, 2: False, 3: None}[len(text)]


def test_a_function_of_the_users_own():
    name = f"{__name__}.judge_length"
    assert [verdict(text, name=name) for text in ("a", "ab", "abc")] == [True, False, None]
    with pytest.raises(UserError, match="fails: KeyError"):
        verdict("abcd", name=name)
    with pytest.raises(UserError, match="cannot be imported"):
        verifiers.load(Verifier(name="no_such_package.verify"))
    with pytest.raises(UserError, match="is no function"):
        verifiers.load(Verifier(name="math.pi"))
