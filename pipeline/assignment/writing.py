"""How a plan is written: one transaction, the identical one again while there is no answer."""

from __future__ import annotations

from typing import Final

from pipeline.errors import AmbiguousTxn, StoreUnavailable
from pipeline.ports import Clock, Store, Txn, TxnResult

RESEND_DEADLINE_S: Final = 10.0
RESEND_PAUSE_S: Final = 0.1


async def send(store: Store, clock: Clock, txn: Txn) -> TxnResult:
    """A failed one may have been applied by an earlier try: see Plan.is_applied. Raises StoreUnavailable."""
    deadline_s = clock.monotonic_s() + RESEND_DEADLINE_S
    while True:
        try:
            return await store.commit(txn)
        except (AmbiguousTxn, StoreUnavailable) as error:
            if clock.monotonic_s() > deadline_s:
                raise StoreUnavailable(f"a transaction had no answer for {RESEND_DEADLINE_S:.0f} s") from error
            await clock.sleep(RESEND_PAUSE_S)
