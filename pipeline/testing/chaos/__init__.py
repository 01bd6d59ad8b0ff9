"""Chaos on real parts: links that can be paused and cut, a plan of faults drawn from a seed, and the report."""
