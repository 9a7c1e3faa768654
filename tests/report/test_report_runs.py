"""Reports of real runs, through the real command line."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from align.report import writer
from align.report.writer import ReportWriter
from align.run import RunFolder
from tests import commands
from tests.report import worlds

pytestmark = pytest.mark.slow
ALIGN = [commands.sys.executable, "-m", "align.cli"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, uneven_rows) -> Path:
    """A tiny run with an evaluation on the way, and TensorBoard where it is installed."""
    output = tmp_path_factory.mktemp("report") / "run"
    more = ["train.hf.report_to=tensorboard"] if has_tensorboard() else []
    return commands.trained(
        "recipes/dpo.yaml", output, commands.TRAIN, f"model.path={tiny_model}", f"data.sources=[{uneven_rows}]",
        "train.max_steps=4", "train.prompts_per_step=4", "eval.every=2", "eval.holdout=0.4", *more,
    )  # fmt: skip


def has_tensorboard() -> bool:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_run_leaves_a_report_and_cards(run):
    told = (run / "report.html").read_text()
    progress = json.loads((run / "progress.json").read_text())
    assert (progress["state"], progress["steps"]) == ("finished", 4) and progress["seconds"] > 0
    assert 2**26 < progress["peak_memory_bytes"] < 2**36
    last = commands.metrics(run)[-1]
    for name in ("loss", "logps/positive", "grad_norm", "lr"):
        assert f'<data value="{last[name]!r}">' in told, name
    after = json.loads((run / "evaluation.json").read_text())["after"]
    for one in after.values():
        low, high = one["logps_interval"]
        assert low < one["logps"] < high and one["change_interval"][0] < one["change_interval"][1]
        assert f'<data value="{one["logps"]!r}">' in told and f'<data value="{low!r}">' in told
    environment = json.loads((run / "environment.json").read_text())
    assert environment["reference_weights_sha256"] == {"adapter_off": environment["start_weights_sha256"]}
    assert environment["start_weights_sha256"] in told and ">finished<" in told
    for folder, weights in ((run, "final"), (run / "final", ".")):
        card = ModelCard((folder / "README.md").read_text())
        assert card.data.library_name == "peft" and f'from_pretrained(base, "{weights}")' in card.text
        assert environment["start_weights_sha256"] in card.text


def test_counts_by_source_and_role(run, uneven_rows):
    data = json.loads((run / "data.json").read_text())
    (counts,) = data["responses"].values()
    assert counts["rows"] == data["rows_used"] == counts["positive"] and list(data["responses"]) == [str(uneven_rows)]
    rows = [json.loads(line) for line in uneven_rows.read_text().splitlines()]
    assert counts["rows"] < counts["negative"] < sum(len(row["negatives"]) for row in rows)
    assert f">{counts['negative']}</data>" in (run / "report.html").read_text()


def test_report_writes_again_what_the_run_wrote(run):
    before = {name: (run / name).read_text() for name in ("report.html", "README.md", "final/README.md")}
    for name in before:
        (run / name).unlink()
    result = commands.run(ALIGN, "report", run)
    assert (result.returncode, result.stdout.strip()) == (0, str(run / "report.html"))
    assert (run / "report.html").read_text() == before["report.html"]
    seconds = re.compile(r"tokens, \d+\.\d\d h|tokens")  # the card was written before the last seconds were counted
    for name in ("README.md", "final/README.md"):
        assert seconds.sub("", (run / name).read_text()) == seconds.sub("", before[name])


def test_compare(run, tmp_path):
    other = worlds.make(tmp_path / "other")
    result = commands.run(ALIGN, "compare", run, other, "--out", tmp_path / "page.html")
    assert result.returncode == 0 and "other" in result.stdout and "nat/token" in result.stdout
    assert "<figure" in (tmp_path / "page.html").read_text()
    found = json.loads(commands.run(ALIGN, "compare", run, other, "--json").stdout)
    lines = commands.metrics(run)
    assert [one["steps"] for one in found] == [4, 40]
    assert found[0]["metrics"]["loss"]["last"] == lines[-1]["loss"]
    assert found[0]["cost"]["tokens"] == sum(line["tokens"] for line in lines)


@pytest.mark.parametrize(
    "words, said",
    [(["report", "{tmp}"], "{tmp}: is no run folder: it has no recipe.yaml; name the folder that a run wrote (output)"),
     (["compare", "{run}"], "command line: names 1 runs; compare two to 8"),
     (["compare", "{run}", "{run}/"], "command line: names a run twice; name each once"),
     (["compare", "{run}", "{tmp}", "--out", "x.png"], "--out: x.png is no .html file; name such a file")],
)  # fmt: skip
def test_mistakes(run, tmp_path, words, said):
    result = commands.run(ALIGN, *(word.format(tmp=tmp_path, run=run) for word in words))
    assert (result.returncode, result.stderr.strip()) == (2, said.format(tmp=tmp_path))


def test_metrics_reach_tensorboard(run):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = commands.metrics(run)
    for name in ("loss", "logps/positive", "logps/negative", "log_ratio/negative", "grad_norm", "tokens_per_second"):
        found = [(one.step, one.value) for one in events.Scalars(f"train/{name}")]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines], name
    assert not list((run / "checkpoints").glob("runs*"))


def test_a_logger_that_is_not_installed_is_told_before_anything_is_loaded(tmp_path, tiny_model, uneven_rows):
    words = [f"model.path={tiny_model}", f"data.sources=[{uneven_rows}]", f"output={tmp_path / 'run'}"]
    result = commands.run(commands.TRAIN, "recipes/dpo.yaml", *words, "train.hf.report_to=clearml")
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert result.stderr.startswith("train.hf.report_to: clearml is not installed; pip install clearml")


def stopped(tmp_path: Path, error: BaseException) -> str:
    """The page of a run that ends with an error."""
    run = RunFolder(worlds.make(tmp_path / "run"))
    with pytest.raises(type(error)), ReportWriter(run):
        raise error
    return run.report.read_text()


def test_a_run_that_fails_says_why(tmp_path):
    told = stopped(tmp_path, FloatingPointError("step 7: the loss is nan; <b>look</b>"))
    assert ">stopped<" in told and "FloatingPointError: step 7: the loss is nan; &lt;b&gt;look&lt;/b&gt;" in told


def test_a_page_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    run = RunFolder(worlds.make(tmp_path / "run"))
    run.report.mkdir()  # nothing can take its name
    with ReportWriter(run) as report:
        for _ in range(3):
            report._write(writer.RUNNING)
    assert capsys.readouterr().err.count("report.html was not written") == 1


def test_pages_take_a_hundredth_of_the_time_at_most(tmp_path, monkeypatch):
    run, clock = RunFolder(worlds.make(tmp_path / "run")), [0.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: clock[0])
    report, pages = ReportWriter(run), []

    def slow_page(_):
        clock[0] += 5.0
        pages.append(clock[0])
        return "page"

    monkeypatch.setattr(writer.page, "of_run", slow_page)
    report.seen = run.evaluation.stat().st_mtime_ns
    for _ in range(20_000):
        clock[0] += 0.1
        report.on_step_end(None, None, None)
    assert len(pages) >= 4 and pages[0] >= writer.EVERY
    assert all(later - earlier >= 500 for earlier, later in itertools.pairwise(pages))
    run.evaluation.write_text(run.evaluation.read_text())  # an evaluation is shown at once
    count = len(pages)
    report.on_step_end(None, None, None)
    assert len(pages) == count + 1


def test_time_is_counted_on_when_a_run_is_gone_on_with(tmp_path):
    run = RunFolder(worlds.make(tmp_path / "run"))
    before = yaml.safe_load(run.progress.read_text())["seconds"]
    report = ReportWriter(run)
    report.begun -= 5
    report.on_train_begin(None, type("State", (), {"max_steps": 40, "global_step": 20}), None)
    assert before + 5 <= json.loads(run.progress.read_text())["seconds"] < before + 60
