"""Rows that are read while a run goes on, for sources too large to be read before it.

Every source is cut into the same lanes, however many ranks there are; each lane is read, shuffled and tokenised by one
rank, and the rows of a step then go round to all. So steps do not depend on the number of ranks, no row is read
twice, and a rank without a lane (more ranks than parts) still has its share of the work.
"""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from accelerate.utils import gather_object

from align.data.lanes import Lane
from align.data.ledger import Ledger, total
from align.data.mixture import Mixture
from align.data.tokenize import TokenizedRow
from align.errors import UserError

SAME_SETTING = "resume with the same setting"
LANES = 16  # parts of a source: the most ranks that read one

Gather = Callable[[list], list]  # of each rank a list; all of them, one behind the other, on every rank


@dataclass
class Channel:
    """The lanes of a source (or of its rows of one role), of which this rank reads those that are not None."""

    title: str
    lanes: list[Lane | None]
    size: float | None = None  # rows in an epoch, about; None: unknown
    files: dict[str, int] = field(default_factory=dict)  # the local files behind it -> bytes
    epoch: int = 0
    turn: int = 0  # which of the lanes that are not at their end is next
    drawn: int = 0  # rows, since the start
    drawn_before: int = 0  # of them, in earlier epochs

    def __post_init__(self) -> None:
        self.alive = list(range(len(self.lanes)))

    def order(self, count: int) -> list[int]:
        """The lanes of the next `count` rows."""
        return [self.alive[(self.turn + index) % len(self.alive)] for index in range(count)]

    def advance(self, asked: int, found: int, ended: set[int]) -> None:
        """`asked` rows were asked for, `found` came; the lanes `ended` had none. After the last an epoch begins."""
        self.turn += asked
        self.drawn += found
        self.alive = [lane for lane in self.alive if lane not in ended]
        if self.alive:
            return
        if self.drawn == self.drawn_before:
            raise UserError(self.title, "holds no usable row", "see `dropped` in data.json, or align doctor")
        self.epoch, self.turn, self.drawn_before = self.epoch + 1, 0, self.drawn
        self.alive = list(range(len(self.lanes)))
        for lane in self.lanes:
            if lane is not None:
                lane.begin(self.epoch)

    def check_files(self, then: dict[str, int]) -> None:
        """Raises UserError if the files are not as large as they were `then`: no place in them would be the same."""
        for name in sorted(then.keys() | self.files.keys()):
            had, has = (f"{found[name]:,} bytes" if name in found else "none" for found in (then, self.files))
            if had != has:
                what = f"is not as it was when the checkpoint was written: {had} then, {has} now"
                raise UserError(name, what, "put it back, or begin anew with train.resume=false")

    @property
    def epochs(self) -> float:
        """Epochs begun, with the share of the last one where the size is known."""
        if self.size:
            return self.epoch + min((self.drawn - self.drawn_before) / self.size, 1.0)
        return float(self.epoch + 1)


class StreamFeed:
    """The rows of each optimiser step, over all ranks, in order; a step can only be had once."""

    def __init__(
        self, channels: Sequence[Channel], mixture: Mixture, steps: int, *,
        ledger: Ledger, gather: Gather = gather_object,
    ):  # fmt: skip
        self.channels, self.mixture, self.steps, self.ledger, self.gather = channels, mixture, steps, ledger, gather
        self.next = 0  # the step that is read next
        self.waiting: deque[list[TokenizedRow]] = deque()  # the rows of the steps before it that nobody asked for yet
        self._before_waiting: dict = {}  # this rank's state before the first of them was read

    def __len__(self) -> int:
        return self.steps

    def rows(self, step: int) -> list[TokenizedRow]:
        """The rows of a step. All ranks must ask, for one step after the other."""
        self._read_up_to(step + 1)
        assert step == self.next - len(self.waiting), "a stream is read in order"
        return self.waiting.popleft()

    def between(self, first: int, last: int) -> list[TokenizedRow]:
        """The rows of the steps first..last-1 that are still to come."""
        self._read_up_to(last)
        begin = self.next - len(self.waiting)
        return [row for step in range(max(first, begin), last) for row in self.waiting[step - begin]]

    def everything(self, ledger: Ledger) -> Ledger:
        """What became of all rows: `ledger`, which all ranks share, and what each of them has read. All must ask."""
        return total([ledger, *self.gather([self.ledger])])

    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through."""
        return {channel.title: channel.epochs for channel in self.channels}

    def state(self) -> dict:
        """What `restore` needs, in JSON's types, the same on all ranks, all of which must ask."""
        parts = self.gather([self._before_waiting if self.waiting else self._own_state()])
        lanes = [dict(itertools.chain(*(one.items() for one in of_channel)))
                 for of_channel in zip(*(part["lanes"] for part in parts), strict=True)]  # fmt: skip
        return parts[0] | {"lanes": lanes, "ledger": total([part["ledger"] for part in parts]).state()}

    def restore(self, state: dict, step: int, is_first_rank: bool) -> None:
        """Goes on at `step` as the feed that gave the `state`, on any number of ranks. Raises UserError.

        It cannot if files have been changed since, or rows were in memory then.
        """
        if "channels" not in state:
            raise UserError("data.streaming", "the checkpoint's run did not stream its rows", SAME_SETTING)
        for channel, files in zip(self.channels, state["files"], strict=True):
            channel.check_files(files)
        self.next, self.mixture.due = state["next"], state["due"]
        for channel, values, lanes in zip(self.channels, state["channels"], state["lanes"], strict=True):
            channel.epoch, channel.turn, channel.drawn, channel.drawn_before, channel.alive = values
            for index, lane in enumerate(channel.lanes):
                if lane is not None:
                    lane.restore(lanes[str(index)])
        if is_first_rank:  # the ledgers of the others begin empty: all of them together count everything once
            self.ledger.restore(state["ledger"])
        self.waiting.clear()
        while self.next < step:
            self._read_up_to(self.next + 1)
            self.waiting.popleft()

    def _own_state(self) -> dict:
        return {
            "next": self.next,
            "due": list(self.mixture.due),
            "files": [channel.files for channel in self.channels],
            "channels": [[one.epoch, one.turn, one.drawn, one.drawn_before, list(one.alive)] for one in self.channels],
            "lanes": [
                {str(index): lane.state() for index, lane in enumerate(channel.lanes) if lane is not None}
                for channel in self.channels
            ],
            "ledger": copy.deepcopy(self.ledger),
        }

    def _read_up_to(self, step: int) -> None:
        while self.next < step:
            if not self.waiting and step > self.next + 1:
                self._before_waiting = self._own_state()
            self.waiting.append(self._read(self.next))
            self.next += 1

    def _read(self, step: int) -> list[TokenizedRow]:
        places = self.mixture.take(step)
        found = [self._take(channel, places.count(index)) for index, channel in enumerate(self.channels)]
        return [found[channel].popleft() for channel in places]

    def _take(self, channel: Channel, count: int) -> deque[TokenizedRow]:
        """The next rows of a channel, each read by the rank that has its lane."""
        found: deque[TokenizedRow] = deque()
        while len(found) < count:
            lanes = channel.order(count - len(found))
            own, error = {}, None
            try:
                for index, lane in enumerate(lanes):
                    if channel.lanes[lane] is not None:
                        own[index] = channel.lanes[lane].draw()
            except UserError as problem:  # told to all ranks, so that none waits for this one
                error = problem.where, problem.what, problem.fix
            parts = self.gather([(own, error)])
            for _, problem in parts:
                if problem is not None:
                    raise UserError(*problem)
            rows = {index: row for part, _ in parts for index, row in part.items()}
            came = [rows[index] for index in range(len(lanes)) if rows[index] is not None]
            found.extend(came)
            ended = {lane for index, lane in enumerate(lanes) if rows[index] is None}
            channel.advance(len(lanes), len(came), ended)
        return found


def own_lanes(count: int, first: int, rank: int, world: int) -> list[bool]:
    """Which of `count` lanes this rank reads; `first` lanes of other sources have been dealt before."""
    return [(first + lane) % world == rank for lane in range(count)]
