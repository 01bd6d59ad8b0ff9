"""All mutants. Their names are those of the guards that they take away."""

from __future__ import annotations

from typing import Final

from tests.simulation import guards_of_assignment, guards_of_flow
from tests.simulation.mutation import Mutant

MUTANTS: Final[tuple[Mutant, ...]] = (*guards_of_assignment.MUTANTS, *guards_of_flow.MUTANTS)
