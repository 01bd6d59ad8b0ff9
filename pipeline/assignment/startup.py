"""What a new leader does before it lends anything: read all there is, and refuse what does not fit the ledger.

An etcd restored from a backup looks healthy and would lend nonces a second time; the ledger, in another database,
remembers them (design rule 9). There is no automatic repair: see stages.recovery for the operator's.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping

from pipeline.assignment.archive import Key
from pipeline.assignment.leadership import Claim
from pipeline.assignment.paths import Paths
from pipeline.assignment.records import Genesis, KeyState
from pipeline.assignment.rules import is_locked_for
from pipeline.assignment.view import GENERATION_SHIFT, Guard, View
from pipeline.errors import AmbiguousTxn, DeploymentHalted
from pipeline.ports import Clock, Compare, Ledger, Store, Txn
from pipeline.stream import Stream

REPAIR = "Nothing is signed. `oncesign recover` rebuilds etcd: see docs/operations.md, 'etcd is behind the ledger'."


async def genesis_of(store: Store, ledger: Ledger, paths: Paths, claim: Claim, clock: Clock) -> bytes:
    """The deployment's genesis record, made on its first start. Raises DeploymentHalted, DependencyDown."""
    found = await store.get(paths.genesis)
    if found is not None:
        return found.value
    await require_new(ledger, paths)
    return await made_genesis(store, paths, claim, clock)


async def made_genesis(store: Store, paths: Paths, claim: Claim, clock: Clock) -> bytes:
    """The one that etcd has, else a new one, whatever the ledger holds. Raises StoreUnavailable."""
    found = await store.get(paths.genesis)
    if found is not None:
        return found.value
    value = Genesis(str(uuid.uuid4()), clock.unix_ms()).to_json()
    txn = Txn(
        compares=(Compare(paths.leader, create_revision=claim.fence), Compare(paths.genesis, create_revision=0)),
        puts=((paths.genesis, value),),
        gets=(paths.genesis,),
    )
    try:
        result = await store.commit(txn)
    except AmbiguousTxn:
        return await made_genesis(store, paths, claim, clock)
    made = None if result.succeeded else result.reads[paths.genesis]
    return made.value if made is not None else value


async def require_new(ledger: Ledger, paths: Paths) -> None:
    """A deployment that etcd does not know has no rows in the ledger. Raises DeploymentHalted, DatabaseUnavailable."""
    if await ledger.heads():
        raise DeploymentHalted(f"etcd holds nothing of {paths.deployment}, but the ledger has rows.", hint=REPAIR)


async def load(store: Store, paths: Paths) -> View:
    """Everything, as etcd has it. Raises StoreUnavailable, MalformedBatch."""
    view = View()
    # In one list, at one revision: a late transaction of our own between two lists would look like a contradiction.
    view.load(paths, await store.list(f"{paths.root}/"))
    view.load(paths, await store.list(paths.owners))
    return view


async def check(view: View, ledger: Ledger) -> None:
    """Raises DeploymentHalted when etcd is behind the ledger or contradicts itself, DatabaseUnavailable."""
    problems = [
        *_behind_watermarks(view, await ledger.watermarks()),
        *_behind_heads(view, await ledger.heads()),
        *_locks_without_assignment(view),
        *_assignments_without_lock(view),
        *_retired(view, await ledger.retired_keys()),
        *await _older_than_recovery(view, ledger),
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DeploymentHalted(f"etcd and the ledger disagree: {problems[0]}{more}.", hint=REPAIR)


def _behind_watermarks(view: View, watermarks: Mapping[tuple[int, str], int]) -> list[str]:
    problems = []
    for (chain_id, sender), watermark in sorted(watermarks.items()):
        held = view.keys.get((chain_id, sender))
        if held is None:
            problems.append(f"the ledger has signatures of {sender} on chain {chain_id}, etcd does not know the key")
        elif held.record.next_nonce < watermark:
            next_nonce = held.record.next_nonce
            problems.append(f"{sender} has signed up to nonce {watermark - 1}, etcd would lend {next_nonce}")
        elif held.record.state is not KeyState.LOCKED and held.record.next_nonce > watermark:
            # Only a published batch frees a key, and it was sworn before: the ledger has lost rows.
            problems.append(
                f"etcd would lend nonce {held.record.next_nonce} of {sender}, it has signed only up to {watermark - 1}"
            )
    return problems


def _behind_heads(view: View, heads: Mapping[Stream, int]) -> list[str]:
    problems = []
    for stream, seq in sorted(heads.items()):
        held = view.streams.get(stream)
        known = held.record.seq if held else 0
        if known < seq:
            problems.append(f"batch {seq} of {stream} was signed, etcd has come to batch {known}")
    return problems


def _locks_without_assignment(view: View) -> list[str]:
    problems = []
    for held in view.keys.values():
        key = held.record
        if key.state is not KeyState.LOCKED:
            continue
        batch = (key.holder.stream, key.holder.seq) if key.holder else None
        if batch is None or batch not in view.assignments:
            problems.append(f"{key.address} is locked for {batch}, which has no assignment")
    return problems


def _assignments_without_lock(view: View) -> list[str]:
    problems = []
    for (stream, seq), assigned in view.assignments.items():
        a = assigned.record
        key, chain = view.keys.get((a.chain_id, a.address)), view.streams.get(stream)
        if chain is None or chain.record.seq < seq:
            problems.append(f"batch {seq} of {stream} is assigned, but its stream has not come to it")
        if a.address and (key is None or not is_locked_for(key.record, a)):
            problems.append(f"batch {seq} of {stream} has the key {a.address}, which is not locked for it")
        elif key is not None and key.record.next_nonce != a.first_nonce + a.count:
            problems.append(f"{a.address} is locked up to nonce {a.first_nonce + a.count - 1}, etcd would lend another")
    return problems


def _retired(view: View, retired: Collection[Key]) -> list[str]:
    held = [view.keys[key].record for key in sorted(retired) if key in view.keys]
    lent = [key for key in held if key.state in (KeyState.FREE, KeyState.LOCKED)]
    return [f"{key.address} was retired on chain {key.chain_id}, etcd has it {key.state.value}" for key in lent]


async def _older_than_recovery(view: View, ledger: Ledger) -> list[str]:
    """The ledger takes nothing new that was assigned before the last recovery: one that began and did not end."""
    generation = await ledger.generation()
    older = [h.record for h in view.assignments.values() if h.record.fence >> GENERATION_SHIFT < generation]
    return [
        f"batch {a.seq} of {a.stream} was assigned before the last recovery, and never signed"
        for a in older
        if await ledger.entry(a.stream, a.seq) is None
    ]


def guard_of(paths: Paths, claim: Claim, genesis: bytes, generation: int) -> Guard:
    """What every write compares from now on."""
    return Guard(paths, claim.fence, claim.value, genesis, generation)
