"""What the pipeline costs when there is nothing to do: CPU time of its own processes, Ray's left out."""

from __future__ import annotations

import json
from typing import Final

from tests.kube.namespace import NAME, kubectl, pods

MEASURE_S: Final = 30
BOUND: Final = 0.05
"""Of a core, all actors together."""

PROBE: Final = """
import json, sys, time
import psutil
actors = [p for p in psutil.process_iter() if p.name().startswith("ray::") and "Actor" in p.name()]
before = {p: sum(p.cpu_times()[:2]) for p in actors}
time.sleep(int(sys.argv[1]))
print(json.dumps({p.name(): sum(p.cpu_times()[:2]) - before[p] for p in actors}))
"""


def share() -> tuple[float, dict[str, float]]:
    """Cores that all actors use, and CPU seconds of each within MEASURE_S; one group after the other."""
    found: dict[str, float] = {}
    for group in ("key-manager", "signers", "io"):
        for pod in pods(f"ray.io/group={group}"):
            name = pod["metadata"]["name"]
            argv = ["-n", NAME, "exec", name, "-c", "ray-worker", "--", "python", "-c", PROBE, str(MEASURE_S)]
            for actor, seconds in json.loads(kubectl(*argv, timeout_s=MEASURE_S + 30)).items():
                found[f"{actor} {name}"] = round(seconds, 2)
    return round(sum(found.values()) / MEASURE_S, 4), found
