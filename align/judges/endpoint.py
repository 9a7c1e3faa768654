"""Requests to an OpenAI-compatible endpoint: retries with back-off, limits on rate and cost, every reply kept."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError, shorten
from align.run import write_text

if TYPE_CHECKING:
    from align.judges.options import LlmJudge as Options

_WHERE = "judges.llm"
_LONGEST_WAIT = 120.0  # seconds between two attempts, whatever the endpoint asks for
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class NoReply(Exception):
    """The endpoint gave no usable reply, however often it was asked."""


class Endpoint:
    """Replies to chat messages. A reply that was paid for is never asked for again; threads may share one."""

    def __init__(self, options: Options, folder: Path):
        self.options, self.folder = options, folder
        self.headers = {"Content-Type": "application/json"}
        if options.key_from is not None:
            key = os.environ.get(options.key_from)
            if not key:
                raise UserError(f"{_WHERE}.key_from", f"{options.key_from} is not set", "export it with the key")
            self.headers["Authorization"] = f"Bearer {key}"
        self.lock, self.next_start = threading.Lock(), 0.0
        self.requests, self.tokens = 0, 0  # of this process; replies found on disk cost nothing

    def reply(self, messages: list[dict], attempt: int = 0) -> str:
        """The text of the reply. `attempt` tells requests apart that are made again since a reply was of no use.

        Raises NoReply; UserError where asking again is of no use, or the limit on tokens is reached.
        """
        body = {
            "model": self.options.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.options.max_reply,
        }
        named = json.dumps([self.options.url, body, attempt], sort_keys=True)
        file = self.folder / f"{hashlib.sha256(named.encode()).hexdigest()}.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))["reply"]
        except (OSError, ValueError, KeyError):
            pass  # not asked yet, or damaged
        text = self._ask(json.dumps(body).encode())
        write_text(file, json.dumps({"request": body, "reply": text}))
        return text

    def _ask(self, body: bytes) -> str:
        wait, reason = 1.0, ""
        for attempt in range(self.options.retries + 1):
            self._take_turn()
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
                if error.code not in _AGAIN:
                    what = f"{self.options.url} refuses: {reason} {shorten(error.reason)}"
                    raise UserError(f"{_WHERE}.url", what, "check url, model and key") from None
                pause = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:  # a timeout is an OSError
                reason, pause = shorten(getattr(error, "reason", error), 80) or type(error).__name__, None
            except (ValueError, KeyError, IndexError, TypeError):
                reason, pause = "the reply is no chat completion", None
            if attempt < self.options.retries:
                time.sleep(min(_LONGEST_WAIT, wait if pause is None else pause))
                wait *= 2
        raise NoReply(reason)

    def _once(self, body: bytes) -> str:
        request = urllib.request.Request(f"{self.options.url.rstrip('/')}/chat/completions", body, self.headers)
        with urllib.request.urlopen(request, timeout=self.options.timeout) as response:
            answer = json.loads(response.read())
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError
        usage = answer.get("usage") or {}
        with self.lock:
            self.tokens += int(usage.get("total_tokens") or (len(body) + len(text)) // 4)  # about 4 bytes a token
        return text

    def _take_turn(self) -> None:
        """Waits until the next request may start. Raises UserError when the limit on tokens is reached."""
        with self.lock:
            limit = self.options.max_tokens
            if limit is not None and self.tokens >= limit:
                what = f"{self.tokens:,} tokens are paid for in this run, the limit is {limit:,}"
                raise UserError(f"{_WHERE}.max_tokens", what, "run again to go on from here: what was judged is kept")
            now = time.monotonic()
            start = max(now, self.next_start)
            self.next_start = start + 60 / self.options.requests_per_minute
            self.requests += 1
        time.sleep(start - now)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None where it is missing or a date."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None
