"""When a small batch waits for more, and for how long."""

from __future__ import annotations

from serving.batching.gathering import ALL_S, BACK_S, BESIDE_S, NEXT_S, TRY_EVERY, Gathering

LITTLE, FEW = 64, 512


def answered(num_calls: int, now: float = 0.0, seconds: float = 0.01) -> Gathering:
    """After a batch of so many calls."""
    gathering = Gathering(little=LITTLE, few=FEW)
    gathering.cut(num_calls)
    gathering.ended(now, seconds)
    return gathering


def test_beside_a_stream_a_little_waits_once_and_a_lot_does_not() -> None:
    gathering = answered(1)
    assert gathering.begin(5.0, 1, LITTLE - 1, idle=False) == 5.0 + BESIDE_S
    assert not gathering.enough(40, LITTLE - 1)
    assert gathering.enough(2, LITTLE)
    assert gathering.further(5.1, 2, LITTLE - 1) == 5.1
    assert gathering.begin(5.0, 1, LITTLE, idle=False) == 5.0


def test_an_idle_engine_waits_for_as_many_calls_as_were_answered_and_only_just_after() -> None:
    gathering = answered(3, now=1.0)
    assert gathering.begin(1.0, 1, 20, idle=True) == 1.0 + BACK_S
    assert gathering.begin(1.0 + BACK_S, 1, 20, idle=True) == 1.0 + BACK_S + NEXT_S
    assert not gathering.enough(2, 40)
    assert gathering.enough(3, 60)
    assert gathering.enough(2, FEW)
    assert gathering.begin(1.0, 3, 60, idle=True) == 1.0  # all are back
    assert gathering.begin(1.0, 1, FEW, idle=True) == 1.0  # enough to do without them
    late = 1.0 + ALL_S + 0.001
    assert gathering.begin(late, 1, 20, idle=True) == late


def test_an_engine_that_is_faster_than_its_clients_does_not_wait() -> None:
    assert answered(3, seconds=BACK_S).begin(0.0, 1, 20, idle=True) > 0
    assert answered(3, seconds=0.9 * BACK_S).begin(0.0, 1, 20, idle=True) == 0.0


def test_a_lone_call_never_waits_nor_the_first_after_a_start() -> None:
    assert answered(1).begin(0.0, 1, 20, idle=True) == 0.0
    assert Gathering(little=LITTLE, few=FEW).begin(7.0, 1, 20, idle=True) == 7.0


def test_the_wait_goes_on_while_calls_come_and_ends_with_the_first_gap() -> None:
    gathering = answered(4)
    assert gathering.begin(0.0, 1, 20, idle=True) == BACK_S
    assert gathering.further(0.002, 2, 40) == 0.002 + NEXT_S
    assert gathering.further(0.0025, 2, 40) == 0.0025
    gathering.begin(0.0, 1, 20, idle=True)
    assert gathering.further(ALL_S, 2, 40) == ALL_S  # however steadily they come


def test_where_waiting_is_in_vain_it_is_only_tried_from_time_to_time_until_it_is_worth_it_again() -> None:
    gathering = answered(3)

    def waits(num_come: int) -> bool:
        until = gathering.begin(0.0, 1, 20, idle=True)
        if until:
            gathering.further(ALL_S, 1 + num_come, 20)
        return until > 0

    assert sum(waits(0) for _ in range(10)) < 6
    tried = sum(waits(0) for _ in range(10 * TRY_EVERY))
    assert tried == 10
    assert sum(waits(2) for _ in range(4 * TRY_EVERY)) > 2 * TRY_EVERY  # clients that come back are found
    assert all(waits(2) for _ in range(TRY_EVERY))
