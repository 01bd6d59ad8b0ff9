"""What sources may spend."""

from __future__ import annotations

from pipeline.assignment.budget import Budget
from pipeline.settings import Settings


def budgets(settings: Settings) -> dict[str, Budget]:
    """Of the sources whose policy has one. Raises InputFileError."""
    files = {source.name: source.policy_file for source in settings.sources if source.policy_file is not None}
    if not files:
        return {}
    from pipeline.adapters.policies import policy_of  # noqa: PLC0415 - what judges columns, for the few that have one

    policies = {name: policy_of(file) for name, file in files.items()}
    bounds = {name: (policy.budget, policy.period_s) for name, policy in policies.items()}
    return {name: Budget(wei, seconds * 1000) for name, (wei, seconds) in bounds.items() if wei is not None and seconds}
