"""`python -m tests.manifests.build`: the Go programs of this folder, built once each."""

from __future__ import annotations

from tests.manifests.rendered import built, built_kustomize


def main() -> None:
    """Raises RuntimeFault."""
    built_kustomize()
    built("promql")


if __name__ == "__main__":
    main()
