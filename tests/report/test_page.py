"""The page in a real browser: plots are drawn, nothing is asked for, no data is alive, all numbers are the files'."""

from __future__ import annotations

import html
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from align.report import compare, curves, facts, page
from tests.browser import CHROMIUM, Browser
from tests.report import worlds

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def written(folder: Path) -> Path:
    """The page of a run, in its folder."""
    file = folder / "report.html"
    file.write_text(page.of_run(facts.read(folder)), encoding="utf-8")
    return file


def drawn(browser: Browser) -> list[dict]:
    """Of each plot: its lines, how wide and high each is on the screen, and its legend."""
    return browser.evaluate("""
        (document.querySelectorAll("details").forEach((one) => { one.open = true; }),
        [...document.querySelectorAll("figure.plot")].map((figure) => ({
          title: figure.querySelector("figcaption b").textContent,
          legend: [...figure.querySelectorAll(".legend li")].map((one) => one.textContent),
          boxes: [...figure.querySelectorAll(":scope > svg > path.line")].map((line) => {
            const box = line.getBoundingClientRect();
            return [box.width, box.height, getComputedStyle(line).stroke, line.getAttribute("stroke-dasharray")];
          }),
          texts: [...figure.querySelectorAll(":scope > svg text")].map((one) => one.textContent),
        })))""")


@needs_browser
def test_plots_are_drawn_and_nothing_is_complained_of(browser, tmp_path):
    file = written(worlds.make(tmp_path / "run", steps=60))
    browser.look()
    browser.open(file)
    plots = {plot["title"]: plot for plot in drawn(browser)}
    assert {"Log-probs by role", "Log-ratios to the reference", "KL, estimated on samples", "Loss", "Gradient norm",
            "Learning rate", "Speed", "Held-out log-probs", "guard: entropy"} <= plots.keys()  # fmt: skip
    assert plots["Log-probs by role"]["legend"] == ["positive", "negative", "sample"]
    for title, plot in plots.items():
        assert plot["boxes"] and "optimiser step" in plot["texts"], title
        for width, height, stroke, _ in plot["boxes"]:
            assert width > 200 and height > 1 and stroke not in ("none", "rgb(0, 0, 0)"), (title, plot["boxes"])
        looks = {(stroke, dash) for _, _, stroke, dash in plot["boxes"]}
        assert len(looks) == len({dash for _, dash in looks}) == len(plot["boxes"]), "told apart without colour, too"
        assert ("3" in plot["texts"]) == ("1" in plot["texts"]) is True, f"{title}: the guard's events are marked"
    assert browser.complaints() == []
    assert browser.requests() == [file.resolve().as_uri()]


@needs_browser
def test_data_cannot_act(browser, tmp_path):
    """Served over HTTP by a server that would notice every request; the data tries to make some."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(file.read_bytes())

        def log_message(self, *_): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        lure = f"<img src={address}/leak><link rel=stylesheet href={address}/leak><script src={address}/leak></script>"
        run = worlds.make(tmp_path / "run", hostile=True)
        answers = json.loads((run / "evaluation.json").read_text())
        answers["answers_after"][0] += lure
        (run / "evaluation.json").write_text(json.dumps(answers))
        recipe = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(recipe.replace("name: npo", f"name: {json.dumps(worlds.HOSTILE + lure)}", 1))
        file = written(run)
        browser.look()
        browser.open(f"{address}/page")
        assert browser.evaluate("document.title").startswith("</script><script>")  # text, and nothing else
        assert browser.evaluate("document.querySelectorAll('img, link, iframe, main script:not([type])').length") == 0
        assert browser.evaluate("document.querySelectorAll('[onload], [onerror], [style]').length") == 0
        assert browser.complaints() == []
        assert set(browser.requests()) <= {f"{address}/page"} and "/leak" not in asked
        shown = browser.evaluate("document.querySelector('#answers').innerText")
        assert r"\x1b[31mred\x1b[0m" in shown and r"\u202e" in shown and "<img src=x onerror" in shown
        # and were it alive, the page's policy would stop it:
        browser.evaluate(f"document.body.appendChild(new Image()).src = '{address}/leak'")
        browser.evaluate(f"fetch('{address}/leak').then(() => 1, () => 0)")
        assert any("Content Security Policy" in one for one in browser.complaints()) and "/leak" not in asked
    finally:
        server.shutdown()


@needs_browser
def test_100_000_steps_open_within_a_second(browser, tmp_path):
    run = worlds.make(tmp_path / "run", steps=100_000)
    began = time.process_time()
    file = written(run)
    made = time.process_time() - began
    assert file.stat().st_size < 5_000_000
    browser.look()
    seconds = min(browser.open(file) for _ in range(3))
    size = file.stat().st_size / 1e6
    print(f"\nread and written in {made:.2f} s of the processor, {size:.2f} MB, opens in {seconds:.3f} s")
    assert seconds < 1 and browser.complaints() == []
    assert all(box[0] > 200 for plot in drawn(browser) for box in plot["boxes"])
    note = browser.evaluate("document.querySelector('#curves .note').textContent")
    assert "256 steps" in note and "mean" in note and "smallest to the largest" in note


@needs_browser
def test_values_are_read_out_by_keys(browser, tmp_path):
    run = worlds.make(tmp_path / "run", steps=30)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    browser.look()
    browser.open(written(run))
    plot = (
        "[...document.querySelectorAll('figure.plot')].find((one) => one.textContent.startsWith('Log-probs by role'))"
    )
    browser.evaluate(f"{plot}.querySelector('svg[tabindex]').focus()")
    for key, step in (("Home", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 30)):
        browser.press(key)
        said = browser.evaluate(f"{plot}.querySelector('.readout').textContent")
        line = lines[step - 1]
        values = {role: line[f"logps/{role}"] for role in ("positive", "negative", "sample")}
        expected = [f"{role} {float(f'{value:.6g}'):.6g}" for role, value in values.items()]
        assert said == " · ".join([f"step {step}", *expected])
    browser.press("Tab")
    assert browser.evaluate(f"{plot}.querySelector('.readout').textContent") == ""
    assert browser.evaluate("document.activeElement.tagName") == "svg", "the next plot"


@needs_browser
@pytest.mark.parametrize("width", [320, 380, 1280])
def test_it_fits_the_screen(browser, tmp_path, width):
    browser.look(width=width)
    browser.open(written(worlds.make(tmp_path / "run", hostile=True)))
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    labels = "[...document.querySelectorAll('figure.plot > svg text')].map((one) => one.getBoundingClientRect().height)"
    assert min(browser.evaluate(f"{labels}.filter((height) => height > 0)")) > 9, "they can be read"


@needs_browser
@pytest.mark.parametrize("width", [320, 1280])
def test_labels_lie_inside_their_plot_and_not_on_each_other(browser, tmp_path, width):
    """Also with many events of the guard, and with small differences, whose ticks have many digits."""
    run = worlds.make(tmp_path / "run")
    event = json.loads((run / "guard.jsonl").read_text().splitlines()[0])
    steps = [1, 2, 2, 3, 5, 6, 11, 12, 13, 20, 21, 22, 22, 22, 30, 33, 34, 40]
    (run / "guard.jsonl").write_text("".join(json.dumps(event | {"step": step}) + "\n" for step in steps))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line | {"small": -12 - line["step"] * 1e-5} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    browser.look(width=width)
    browser.open(written(run))
    assert "small" in {plot["title"] for plot in drawn(browser)}
    outside, covered = browser.evaluate("""(() => {
      const outside = [], covered = [], box = (one) => one.getBoundingClientRect();
      for (const svg of document.querySelectorAll("figure.plot > svg")) {
        const whole = box(svg), texts = [...svg.querySelectorAll("text")].filter((one) => box(one).width > 0);
        for (const one of texts) {
          const own = box(one);
          if (own.left < whole.left - 1 || own.right > whole.right + 1 || own.top < whole.top - 1
              || own.bottom > whole.bottom + 2) outside.push(one.textContent);
          for (const other of texts) {
            const its = box(other);
            if (one !== other && own.left < its.right - 1 && its.left < own.right - 1
                && own.top < its.bottom - 2 && its.top < own.bottom - 2) covered.push(one.textContent);
          }
        }
      }
      return [outside, covered];
    })()""")
    assert (outside, covered) == ([], [])


@needs_browser
def test_a_print_out_fits_the_page_and_breaks_no_number(browser, tmp_path):
    """A4, also of eight runs side by side; what is folded up is printed, too."""
    runs = [worlds.make(tmp_path / f"a-run-with-a-long-name-{number}", seed=number) for number in range(8)]
    several = tmp_path / "several.html"
    several.write_text(compare.of_runs(compare.labelled([facts.read(run) for run in runs])), encoding="utf-8")
    for file in (written(runs[0]), several):
        browser.look(width=794, media="print")
        browser.open(file)
        browser.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert browser.evaluate("[...document.querySelectorAll('details')].every((one) => one.open)")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 794, file.name
        broken = "[...document.querySelectorAll('td data')].filter((one) => one.getClientRects().length > 1).length"
        assert browser.evaluate(broken) == 0, file.name


def test_a_line_that_is_alone_says_what_it_is(tmp_path):
    """A metric that one of two runs has, and the only role of a run."""
    one, other = worlds.make(tmp_path / "one"), worlds.make(tmp_path / "other")
    lines = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k not in ("logps/positive", "logps/sample")} for line in lines]
    lines = [line | {"margin": line["step"] / 2, "guard/positive": line["step"] / 3} for line in lines]
    (one / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = {
        plot.title: plot for plot in curves.shared_plots([("one", facts.read(one)), ("other", facts.read(other))])
    }
    assert "guard: positive" in shared and "Log-probs by role: negative" in shared
    assert '<ul class="legend"><li>' in shared["margin"].figure() and "</svg>one</li>" in shared["margin"].figure()
    own = {plot.title: plot.figure() for plot in curves.main_plots(facts.read(one))}
    assert "</svg>negative</li>" in own["Log-probs by role"] and 'class="legend"' not in own["Loss"]


def test_many_held_out_sets_are_drawn_in_parts(tmp_path):
    """No plot has two lines that look the same."""
    run = worlds.make(tmp_path / "run")
    found = json.loads((run / "evaluation.json").read_text())
    for measured in (found["before"], *found["during"], found["after"]):
        (one,) = [value for name, value in measured.items() if name.endswith("benign held_out: good answers")]
        measured |= {f"set {number}: good answers": one for number in range(9)}
    (run / "evaluation.json").write_text(json.dumps(found))
    plots = curves.held_out_plots(facts.read(run))
    assert [plot.title for plot in plots[:2]] == ["Held-out log-probs, part 1", "Held-out log-probs, part 2"]
    assert [len(plot.lines) for plot in plots] == [8, 4] * 3
    assert all(len({line.style for line in plot.lines}) == len(plot.lines) for plot in plots)


@needs_browser
def test_text_has_contrast_in_light_and_dark(browser, tmp_path):
    """At least 4.5 to 1 for text and 3 to 1 for lines (WCAG 2.2, 1.4.3 and 1.4.11)."""
    browser.open(written(worlds.make(tmp_path / "run")))
    measure = """(() => {
      const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const back = light(getComputedStyle(document.body).backgroundColor);
      const contrast = (colour) => { const own = light(colour);
        return (Math.max(own, back) + .05) / (Math.min(own, back) + .05); };
      const all = (what, property) => Math.min(...[...document.querySelectorAll(what)]
        .map((one) => contrast(getComputedStyle(one)[property])));
      return [all("h1, h2, p, td, th, dt, dd, a, li span, .state", "color"), all("svg text", "fill"),
              all("path.line, path.mark, .flag path", "stroke")];
    })()"""
    for dark in (False, True):
        browser.look(dark=dark)
        texts, labels, lines = browser.evaluate(measure)
        assert texts >= 4.5 and labels >= 4.5 and lines >= 3, (dark, texts, labels, lines)


def numbers_of(tree: object) -> set[str]:
    """All numbers in JSON, as Python writes them."""
    if isinstance(tree, dict):
        return set().union(*map(numbers_of, tree.values()), *map(numbers_of, tree))
    if isinstance(tree, list):
        return set().union(*map(numbers_of, tree))
    return {repr(tree)} if isinstance(tree, int | float) and not isinstance(tree, bool) else set()


def test_every_number_is_the_files(tmp_path):
    """Each <data value> is a number in a file, or a sum, mean, difference or count of such, done here again."""
    run = worlds.make(tmp_path / "run", steps=40)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (run / "guard.jsonl").read_text().splitlines()]
    known = numbers_of(lines) | numbers_of(events) | {"16", "0.1", "1.0"}  # rank, beta, weights of the recipe
    for name in ("data", "environment", "evaluation", "evaluations", "progress"):
        known |= numbers_of(json.loads((run / f"{name}.json").read_text()))
    evaluation = json.loads((run / "evaluation.json").read_text())
    known |= {repr(now["logps"] - evaluation["before"][name]["logps"]) for name, now in evaluation["after"].items()}
    known |= {repr(value) for value in (len(events), 0, *range(1, len(events) + 1), *range(41))}
    tokens, seconds = sum(line["tokens"] for line in lines), 0.0
    for line in lines:
        seconds += line["tokens"] / line["tokens_per_second"]
    known |= {repr(tokens), repr(seconds), repr(tokens / seconds)}
    told = page.of_run(facts.read(run))
    table = told[told.index("All metrics in numbers") :]
    means = {name: sum(line[name] for line in lines if name in line) for name in lines[-1] if name != "step"}
    for name, total in means.items():
        row = table[table.index(f">{name}</th>") :]
        first, last, mean, low, high, count, _ = re.findall(r'<data value="([^"]*)">', row)[:7]
        own = [line[name] for line in lines if name in line]
        assert [float(first), float(last), float(low), float(high)] == [own[0], own[-1], min(own), max(own)]
        assert float(mean) == pytest.approx(total / len(own), rel=1e-12) and int(count) == len(own)
    found = re.findall(r'<data value="([^"]*)">([^<]*)</data>', told[: told.index("All metrics in numbers")])
    found += re.findall(r'<data value="([^"]*)">([^<]*)</data>', told[told.index('<section id="guard">') :])
    assert len(found) > 100
    for value, shown in found:
        assert value in known, value
        plain = shown.replace(",", "").removesuffix(" GiB")
        own = float(value) / 2**30 if shown.endswith("GiB") else float(value)
        assert float(plain) == pytest.approx(own, rel=2e-3, abs=6e-4), (value, shown)
    for script in re.findall(r'<script type="application/json">(.*?)</script>', told):
        for label, steps, mean, *_ in json.loads(script)["lines"]:
            for name in (label, f"logps/{label}", f"log_ratio/{label}"):
                own = {line["step"]: float(f"{line[name]:.6g}") for line in lines if name in line}
                if [own.get(step) for step in steps] == mean:
                    break
            else:
                assert "held_out" in label, label
    assert html.unescape(told).count("objective: {name: npo, beta: 0.1}") == 1, "the resolved recipe as it is"


@pytest.mark.parametrize(
    "missing", ["metrics.jsonl", "environment.json", "data.json", "evaluation.json", "progress.json"]
)
def test_a_run_that_has_just_begun_has_a_page(tmp_path, missing):
    run = worlds.make(tmp_path / "run")
    (run / missing).unlink()
    assert "npo" in page.of_run(facts.read(run))
    for file in run.glob("*.json*"):
        file.unlink()
    assert "The resolved recipe" in page.of_run(facts.read(run))


@needs_browser
def test_runs_side_by_side(browser, tmp_path):
    folders = [
        worlds.make(tmp_path / name, steps=steps, seed=seed)
        for seed, (name, steps) in enumerate({"a": 40, "b": 900}.items())
    ]
    runs = compare.labelled([facts.read(folder) for folder in folders])
    file = tmp_path / "compare.html"
    file.write_text(compare.of_runs(runs), encoding="utf-8")
    browser.look()
    browser.open(file)
    plots = {plot["title"]: plot for plot in drawn(browser)}
    assert plots["Log-probs by role: negative"]["legend"] == ["a", "b"]
    assert all(len(plot["boxes"]) == 2 and min(box[1] for box in plot["boxes"]) > 1 for plot in plots.values())
    differs = browser.evaluate("[...document.querySelectorAll('#recipes tbody th')].map((one) => one.textContent)")
    assert differs == ["objective.beta", "train.max_steps"]
    assert browser.complaints() == [] and browser.requests() == [file.resolve().as_uri()]
