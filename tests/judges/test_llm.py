"""The judge behind an endpoint, against a real HTTP server that is slow, refuses, or talks nonsense."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from align.data.examples import Example
from align.errors import UserError
from align.judges import Answer
from align.judges.endpoint import Endpoint, NoReply
from align.judges.llm import LlmJudge, read_reply
from align.judges.options import LlmJudge as Options

GOOD = json.dumps({"steps": [{"step": 1, "correct": 0.9}, {"step": 2, "correct": False}]})


class Server(ThreadingHTTPServer):
    """Gives the next of its `replies` to each request: (status, headers, body), or seconds to sleep before one."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.seen, self.lock = [], [], threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((time.monotonic(), self.path, dict(self.headers), body))
            reply = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
        status, headers, text = reply
        if status == "sleep":
            time.sleep(headers)
            status, headers = 200, {}
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())
        except BrokenPipeError:
            pass  # the client has given up

    def log_message(self, *arguments):
        pass


def said(text: str, tokens: int = 10) -> tuple:
    completion = {"choices": [{"message": {"content": text}}], "usage": {"total_tokens": tokens}}
    return 200, {}, json.dumps(completion)


@pytest.fixture
def server():
    own = Server()
    threading.Thread(target=own.serve_forever, args=(0.02,), daemon=True).start()
    yield own
    own.shutdown()
    own.server_close()


def options(server: Server, **given) -> Options:
    return Options(**{"url": server.url, "model": "m", "requests_per_minute": 1e6, "timeout": 5.0} | given)


def judge(server: Server, folder, **given) -> LlmJudge:
    own = options(server, **given)
    return LlmJudge(Endpoint(own, folder), own)


def answer(number: int = 0) -> Answer:
    example = Example((("user", f"What is {number}+1?"),), (), "test", f"rows.jsonl:{number}")
    return Answer(example, "one\ntwo", (4, 7))


def test_scores_and_the_request(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "abc")
    server.replies = [said(f"```json\n{GOOD}\n```")]
    assert judge(server, tmp_path, key_from="MY_KEY").score([answer()]) == [[0.9, 0.0]]
    _, path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer abc"
    assert body["model"] == "m" and body["temperature"] == 0
    shown = body["messages"][1]["content"]
    assert "What is 0+1?" in shown and "Step 1: one\nStep 2: two" in shown


def test_a_key_that_is_not_set_is_told(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY is not set"):
        judge(server, tmp_path, key_from="MY_KEY")


def test_replies_are_paid_for_once(server, tmp_path):
    server.replies = [said(GOOD)]
    first = judge(server, tmp_path).score([answer(n) for n in range(6)])
    assert len(server.seen) == 6
    assert judge(server, tmp_path).score([answer(n) for n in range(7)])[:6] == first
    assert len(server.seen) == 7
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:20])  # damaged: asked again
    assert judge(server, tmp_path).score([answer()]) == [[0.9, 0.0]]
    assert len(server.seen) == 8


def test_it_waits_as_long_as_the_endpoint_says(server, tmp_path):
    server.replies = [(429, {"Retry-After": "0.3"}, ""), (503, {"Retry-After": "0"}, ""), said(GOOD)]
    assert judge(server, tmp_path).score([answer()]) == [[0.9, 0.0]]
    times = [seen[0] for seen in server.seen]
    assert times[1] - times[0] >= 0.3 and times[2] - times[1] < 1.0  # without the header it would wait 2 s


def test_timeouts_are_tried_again_then_skipped(server, tmp_path):
    server.replies = [("sleep", 1.0, ""), said(GOOD)]
    assert judge(server, tmp_path, timeout=0.2, retries=1).score([answer()]) == [[0.9, 0.0]]
    server.replies = [("sleep", 1.0, "")]
    assert judge(server, tmp_path, timeout=0.2, retries=0).score([answer(1)]) == [[None, None]]


@pytest.mark.parametrize("reply", [said("I think all is fine"), (200, {}, "<html>"), (200, {}, "{}"), (500, {}, "")])
def test_an_endpoint_that_is_of_no_use_is_told_and_nothing_paid_for_is_lost(server, tmp_path, reply):
    server.replies = [said(GOOD), said(GOOD), reply]
    own = judge(server, tmp_path, retries=0, parallel=1)
    with pytest.raises(UserError, match="no usable reply on 5 answers in a row"):
        own.score([answer(n) for n in range(20)])
    asked = len(server.seen)
    assert asked <= 2 + 3 * 6
    server.replies = [said(GOOD)]
    assert own.score([answer(0), answer(1)]) == [[0.9, 0.0]] * 2
    assert len(server.seen) == asked  # both were kept


def test_one_useless_answer_is_skipped(server, tmp_path):
    nonsense = said('{"steps": [{"step": 1, "correct": 0.9}]}')  # of one step, not two
    server.replies = [nonsense, nonsense, nonsense, said(GOOD)]
    assert judge(server, tmp_path, parallel=1).score([answer(0), answer(1)]) == [[None, None], [0.9, 0.0]]


def test_refusals_are_not_repeated(server, tmp_path):
    server.replies = [(401, {}, "")]
    with pytest.raises(UserError, match="refuses: HTTP 401"):
        judge(server, tmp_path).score([answer()])
    assert len(server.seen) == 1


def test_nobody_there(tmp_path):
    own = Options(url="http://127.0.0.1:9/v1", model="m", retries=0)
    with pytest.raises(NoReply):
        Endpoint(own, tmp_path).reply([])


def test_limits_on_rate_and_tokens(server, tmp_path):
    server.replies = [said(GOOD, tokens=100)]
    begun = time.monotonic()
    judge(server, tmp_path / "a", requests_per_minute=600).score([answer(n) for n in range(5)])
    assert time.monotonic() - begun >= 0.4  # four gaps of 0.1 s
    with pytest.raises(UserError, match=r"200 tokens are paid for .* the limit is 150"):
        judge(server, tmp_path / "b", max_tokens=150, parallel=1).score([answer(n) for n in range(5)])
    assert judge(server, tmp_path / "b", max_tokens=150).score([answer(0), answer(1)]) == [[0.9, 0.0]] * 2


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '{"steps": 3}', '{"steps": [1, 2]}', GOOD + " fine", f"Sure: {GOOD}",
        '{"steps": [{"step": 2, "correct": 1}, {"step": 1, "correct": 1}]}',
        '{"steps": [{"step": 1, "correct": 1.5}, {"step": 2, "correct": 1}]}',
        '{"steps": [{"step": 1, "correct": NaN}, {"step": 2, "correct": 1}]}',
        '{"steps": [{"step": 1, "correct": "yes"}, {"step": 2, "correct": 1}]}', "[" * 100_000,
    ],
)  # fmt: skip
def test_replies_are_read_strictly(text):
    with pytest.raises(ValueError):
        read_reply(text, 2)
