"""The number of signers follows the backlog between its bounds, up at once and down after a while."""

from __future__ import annotations

from actors.scaling import BACKLOG_PER_SIGNER, SHRINK_AFTER_S, Scale


def test_a_backlog_asks_for_more_up_to_the_bound() -> None:
    scale = Scale(1, 4)
    assert scale.wanted(0, 1, 0.0) == 1
    assert scale.wanted(BACKLOG_PER_SIGNER, 1, 1.0) == 1
    assert scale.wanted(BACKLOG_PER_SIGNER + 1, 1, 2.0) == 2
    assert scale.wanted(1_000, 2, 3.0) == 4


def test_fewer_are_kept_only_after_a_while_without_need() -> None:
    scale = Scale(1, 4)
    assert scale.wanted(1_000, 4, 0.0) == 4
    assert scale.wanted(0, 4, 1.0) == 4
    assert scale.wanted(1_000, 4, SHRINK_AFTER_S - 1) == 4
    assert scale.wanted(0, 4, SHRINK_AFTER_S + 1) == 4
    assert scale.wanted(0, 4, 2 * SHRINK_AFTER_S) == 1


def test_no_bound_above_the_least_is_a_fixed_number() -> None:
    assert Scale(2, 0).wanted(1_000, 2, 0.0) == 2
