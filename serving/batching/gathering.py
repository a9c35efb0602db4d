"""How long the batcher waits for more before it cuts a small batch: not at all, unless more is about to come."""

from __future__ import annotations

BESIDE_S = 0.0003  # beside a stream that runs
BACK_S = 0.0016  # so long after a batch has ended its clients begin to be back, if they are to come back at once,
NEXT_S = 0.0004  # and after the first so long from one to the next,
ALL_S = 0.004  # and all of them
WORTH, MEMORY, TRY_EVERY = 0.4, 0.75, 16


class Gathering:
    """What is expected, from what was seen; kept under the batcher's lock.

    A client that asks again as soon as it is answered is back within two milliseconds. Were the first of several run
    alone, the others would wait for it, and then run in a batch without it. Clients that come at random are not back:
    where waiting has not been worth it, it is only tried from time to time. An engine that runs a batch in less time
    than clients need to be back does not wait.
    """

    def __init__(self, *, little: int, few: int) -> None:
        """Costs: less than little waits for more beside a stream that runs, less than few when none runs."""
        self._little, self._few = little, few
        self._expected = 0  # calls under way when the last batch was cut
        self._ended, self._took_s = float("-inf"), 0.0  # when the last batch had run, and how long
        self._worth = 1.0  # of the calls waited for, the share that came, lately
        self._num_skipped = 0
        self._wanted_calls, self._wanted_cost = 0.0, 0
        self._had = self._seen = 0  # calls that waited when the wait began, and when it was last looked

    def cut(self, num_calls: int) -> None:
        """A batch was cut while so many calls waited or ran, its own included."""
        self._expected = num_calls

    def ended(self, now: float, seconds: float) -> None:
        """A batch has run, so long."""
        self._ended, self._took_s = now, seconds

    def begin(self, now: float, num_calls: int, cost: int, *, idle: bool) -> float:
        """Until when to wait with so many calls waiting; enough() may end it sooner. No later than now: not at all."""
        self._had = self._seen = num_calls
        if not idle:
            self._wanted_calls, self._wanted_cost = float("inf"), self._little
            return now + BESIDE_S if cost < self._little else now
        self._wanted_calls, self._wanted_cost = self._expected, self._few
        if self.enough(num_calls, cost) or now > self._ended + ALL_S or self._took_s < BACK_S:
            return now
        if self._worth < WORTH:
            self._num_skipped += 1
            if self._num_skipped % TRY_EVERY:
                return now
        return max(self._ended + BACK_S, now + NEXT_S)

    def enough(self, num_calls: int, cost: int) -> bool:
        return num_calls >= self._wanted_calls or cost >= self._wanted_cost

    def further(self, now: float, num_calls: int, cost: int) -> float:
        """The same when that time has come, or enough."""
        if self._wanted_calls == float("inf"):
            return now
        if num_calls > self._seen and not self.enough(num_calls, cost) and now < self._ended + ALL_S:
            self._seen = num_calls
            return now + NEXT_S
        came = max(0, num_calls - self._had) / (self._wanted_calls - self._had)
        self._worth = MEMORY * self._worth + (1 - MEMORY) * min(1.0, came)
        return now
