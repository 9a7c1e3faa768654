"""Fixtures of the tests that ask TRL."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.objectives import trl_oracle


@pytest.fixture(scope="module")
def policy():
    return tiny.llama(seed=1)


@pytest.fixture(scope="module", params=["text", "chat"])
def encoder(request):
    return tiny.tokenizer(trl_oracle.CHATML if request.param == "chat" else None)


@pytest.fixture(scope="module")
def inputs(trainer):
    """What the file's own `trainer` of TRL takes in a step."""
    return trl_oracle.only_batch(trainer)
