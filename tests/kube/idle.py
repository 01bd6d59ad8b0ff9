"""What the pipeline costs when there is nothing to do: CPU time of its actors beyond that of an empty one."""

from __future__ import annotations

import json
import shlex
from typing import Final

from tests.kube.namespace import NAME, Dashboard, kubectl, pods

MEASURE_S: Final = 30
JOB_TIMEOUT_S: Final = 180.0
BOUND: Final = 0.05
"""Of a core, all actors together."""

ACTORS: Final = """
import json, sys, time
import psutil
actors = [p for p in psutil.process_iter() if p.name().startswith("ray::") and "Actor" in p.name()]
before = {p: sum(p.cpu_times()[:2]) for p in actors}
time.sleep(int(sys.argv[1]))
print(json.dumps({p.name(): sum(p.cpu_times()[:2]) - before[p] for p in actors}))
"""
BARE: Final = """
import os, sys, time
import psutil, ray
@ray.remote(num_cpus=0, resources={"io": 0.001})
class Bare:
    def used(self):
        return sum(psutil.Process().cpu_times()[:2])
bare = Bare.remote()
ray.get(bare.used.remote())
time.sleep(3)
before = ray.get(bare.used.remote())
time.sleep(int(sys.argv[1]))
print("used", ray.get(bare.used.remote()) - before)
"""


def share(jobs: Dashboard) -> tuple[float, float, dict[str, float]]:
    """Cores that the pipeline uses; the CPU seconds within MEASURE_S of an empty actor, and of each of ours."""
    logs = jobs.run(f"python -c {shlex.quote(BARE)} {MEASURE_S}", JOB_TIMEOUT_S)
    bare = next(float(line.split()[1]) for line in logs.splitlines() if line.startswith("used "))
    found: dict[str, float] = {}
    for group in ("key-manager", "signers", "io"):
        for pod in pods(f"ray.io/group={group}"):
            name = pod["metadata"]["name"]
            argv = ["-n", NAME, "exec", name, "-c", "ray-worker", "--", "python", "-c", ACTORS, str(MEASURE_S)]
            for actor, seconds in json.loads(kubectl(*argv, timeout_s=MEASURE_S + 30)).items():
                found[f"{actor} {name}"] = round(seconds, 2)
    own = sum(max(0.0, seconds - bare) for seconds in found.values())
    return round(own / MEASURE_S, 4), round(bare, 2), found
