"""Fixtures for all tests. No network: models and tokenizers are made in code, or are the embedded default."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import json
from pathlib import Path

import pytest
import torch

from tests import commands

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch) -> None:
    """What trains inside a test does so on one thread: several workers' threads would wait for each other."""
    monkeypatch.setattr("align.processor.use_all_cores", lambda: None)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(autouse=True)
def own_cache(monkeypatch) -> None:
    """Each test has a reference store of its own."""
    monkeypatch.setenv("ALIGN_CACHE", commands.own_cache())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a tiny random Llama and its tokenizer with a chat template."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("tiny-model")
    tiny.save(folder)
    return folder


@pytest.fixture(scope="session")
def uneven_rows(tmp_path_factory) -> Path:
    """A JSONL file of 24 prompts with unequal lengths and unequal numbers of negatives and positives."""
    file = tmp_path_factory.mktemp("data") / "uneven.jsonl"
    words = "the cat sat on a mat and saw seven red birds fly over the old stone house by the river".split()
    rows = []
    for index in range(24):
        prompt = " ".join(words[: 3 + index * 5 % 11]) + f" number {index}?"
        negatives = [" ".join(words[n : n + 2 + (index + 3 * n) % 9]) for n in range(1 + index % 3)]
        rows.append({"prompt": prompt, "negatives": negatives, "positives": [" ".join(words[-2 - index % 5 :])]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def schooled(tmp_path_factory) -> Path:
    """A folder with a tiny model that has read the benign and the retain rows."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("schooled")
    tiny.school(folder)
    return folder
