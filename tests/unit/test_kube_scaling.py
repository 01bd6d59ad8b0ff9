from __future__ import annotations

from tests.kube.namespace import Dashboard
from tests.kube.scaling import DOWN_BOUND_S, Sample, Watch, summary, table, too_late

SIGNED_S = 40.0
UP_AND_DOWN = (
    Sample(0.5, 1, 1, 2, 900),
    Sample(9.0, 3, 1, 2, 50_000),
    Sample(25.0, 3, 2, 4, 150_000),
    Sample(31.0, 3, 3, 6, 200_000),
    Sample(SIGNED_S, 3, 3, 6, 400_000),
    Sample(105.0, 3, 3, 2, 400_000),
    Sample(150.0, 2, 2, 2, 400_000),
    Sample(161.0, 1, 1, 2, 400_000),
)


def watched(*samples: Sample) -> Watch:
    return Watch(Dashboard(), samples=[*samples])


def test_pods_and_signers_are_timed_from_the_first_batch_and_from_the_last_row() -> None:
    found = summary(watched(*UP_AND_DOWN), SIGNED_S)
    assert found["pods"] == {"least": 1, "most": 3, "up_s": 25.0, "all_up_s": 31.0, "down_s": 121.0}
    assert found["signers"] == {"least": 2, "most": 6, "up_s": 25.0, "all_up_s": 31.0, "down_s": 65.0}
    assert too_late(found) == []


def test_what_never_rose_or_fell_late_is_told() -> None:
    found = summary(watched(*UP_AND_DOWN[:1], Sample(SIGNED_S, 1, 1, 2, 400_000)), SIGNED_S)
    assert too_late(found) == ["pods up_s", "signers up_s"]
    assert "never" in table(found)[1]
    late = Sample(SIGNED_S + DOWN_BOUND_S + 1, 1, 1, 2, 400_000)
    assert too_late(summary(watched(*UP_AND_DOWN[:5], late), SIGNED_S)) == ["pods down_s", "signers down_s"]
