"""What each route does: bodies in, calls of the key manager, answers out. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Final

from pydantic import SecretBytes

from pipeline.custody.kek_ring import KekRing
from pipeline.custody.keystore import open_keystore
from pipeline.errors import SecretFileError
from pipeline.ethereum.rules import RULES_VERSION, WIDE_RULES_VERSION
from pipeline.ports import Assigned, AssignReply, AssignRequest, Published, Refused, Waiting
from pipeline.service import body
from pipeline.service.desk import Leading
from pipeline.service.problem import Code, Problem
from pipeline.settings import Settings
from pipeline.stages import intake
from pipeline.stream import Cursor, Stream

KDF_WORK_MAX: Final = 2**22
"""Of a keystore: scrypt's n · r · p, or PBKDF2's rounds. The usual 2^18 · 8 · 1 takes 256 MiB, this twice as much."""


class Operations:
    """One method per route."""

    def __init__(self, leading: Leading, settings: Settings) -> None:
        self._leading = leading
        self._settings = settings
        self._opening = asyncio.Lock()

    async def assign(self, given: body.AssignBody) -> body.AssignAnswer:
        """Waits in the queue for as long as the client says."""
        requests = [_request(batch, given) for batch in given.batches]
        for request in requests:
            self._check(request)
        desk = await self._leading()
        for request in requests:
            if request.stream.source in desk.budgets and request.count and not request.spend:
                raise Problem(Code.INVALID, f"source {request.stream.source} has a budget.", "Give spend_wei.")
        replies = await desk.assign(requests, given.deadline_s)
        return body.AssignAnswer(replies=[_reply(reply) for reply in replies])

    async def release(self, given: body.ReleaseBody) -> body.ReleaseAnswer:
        """Of what this worker holds."""
        desk = await self._leading()
        await desk.release_held([(Stream.parse(batch.stream), batch.seq) for batch in given.batches], given.worker)
        return body.ReleaseAnswer(released=given.batches)

    async def list_keys(self, given: body.Window) -> body.KeyList:
        """Oldest first."""
        keys = await (await self._leading()).list_keys()
        shown = [body.Key.model_validate(body.fields_of(key)) for key in keys[: given.limit]]
        return body.KeyList(total=len(keys), keys=shown)

    async def list_assignments(self, given: body.Window) -> body.AssignmentList:
        """Oldest first."""
        found = await (await self._leading()).list_assignments()
        found.sort(key=lambda assignment: (assignment.since_unix_ms, assignment.stream, assignment.seq))
        shown = [body.Assignment.model_validate(body.fields_of(each)) for each in found[: given.limit]]
        return body.AssignmentList(total=len(found), assignments=shown)

    async def list_queue(self, given: body.Window) -> body.QueueAnswer:
        """First come first."""
        queue = (await self._leading()).list_queue()
        waiting = [
            body.Waiter(
                stream=str(queued.request.stream),
                seq=queued.request.seq,
                chain_id=queued.request.chain_id,
                count=queued.request.count,
                worker=queued.request.worker,
                node=queued.request.node,
                waited_s=round(queued.waited_s, 3),
                sender=queued.request.sender,
                blobs=queued.request.blobs,
            )
            for queued in queue
        ]
        oldest_s = waiting[0].waited_s if waiting else 0.0
        return body.QueueAnswer(length=len(queue), oldest_s=oldest_s, waiting=waiting[: given.limit])

    async def list_streams(self) -> body.StreamList:
        """By name."""
        streams = await (await self._leading()).list_streams()
        return body.StreamList(streams=[body.Chain.model_validate(body.fields_of(stream)) for stream in streams])

    async def create_keys(self, given: body.CreateBody) -> body.AddressList:
        """Made and sealed here."""
        desk = await self._leading()
        keks = await self._keks()
        keys = intake.made(given.chain_id, given.count, keks)
        await desk.import_keys(keys)
        return body.AddressList(addresses=[address for _, address, _, _ in keys])

    async def import_key(self, given: body.ImportBody) -> body.AddressList:
        """Opened and sealed here."""
        desk = await self._leading()
        keks = await self._keks()
        _check_work(given.keystore)
        password = SecretBytes(given.password.get_secret_value().encode())
        try:
            async with self._opening:  # each takes a second of a core, and scrypt 256 MiB
                key = await asyncio.to_thread(open_keystore, "keystore", given.keystore, password)
        except SecretFileError as error:
            raise Problem(Code.INVALID, error.message, error.hint) from None
        sealed = keks.seal(bytes(key.reveal()), key.address)
        key.wipe()
        await desk.import_keys([(given.chain_id, key.address, sealed, given.next_nonce)])
        return body.AddressList(addresses=[key.address])

    async def disable_key(self, given: body.KeyPath) -> body.KeyChanged:
        """Lent no more."""
        await (await self._leading()).disable(given.chain_id, given.address)
        return body.KeyChanged(chain_id=given.chain_id, address=given.address)

    async def enable_key(self, given: body.KeyPath) -> body.KeyChanged:
        """Lent again."""
        await (await self._leading()).enable(given.chain_id, given.address)
        return body.KeyChanged(chain_id=given.chain_id, address=given.address)

    def _check(self, request: AssignRequest) -> None:
        """What the pipeline's own workers have checked before they ask; past here it would halt the stream."""
        stream = request.stream
        source = next((source for source in self._settings.sources if source.name == stream.source), None)
        if source is None or stream.shard >= source.shards:
            known = ", ".join(f"{s.name}/0 … {s.name}/{s.shards - 1}" for s in self._settings.sources)
            raise Problem(Code.UNKNOWN_STREAM, f"there is no stream {stream}.", f"Known: {known}.")
        if request.chain_id != source.chain_id:
            raise Problem(
                Code.CONFLICT, f"batch {request.seq} is for chain {request.chain_id}, {stream} for {source.chain_id}."
            )
        if request.rules_version not in (RULES_VERSION, WIDE_RULES_VERSION):
            raise Problem(
                Code.CONFLICT,
                f"the rules are of version {RULES_VERSION} or {WIDE_RULES_VERSION}, not {request.rules_version}.",
                "Validate it by the version of its codec.",
            )
        if request.count > request.rows:
            raise Problem(Code.INVALID, f"batch {request.seq} has more signable rows than rows.")

    async def _keks(self) -> KekRing:
        """Read when it is needed, so that a key manager without it still lends."""
        view = (await self._leading()).view()
        try:
            return await asyncio.to_thread(intake.load_keks, self._settings.kek_path, view)
        except SecretFileError as error:
            raise Problem(Code.KEK_UNUSABLE, error.message, error.hint) from None


def _request(batch: body.BatchToAssign, given: body.AssignBody) -> AssignRequest:
    return AssignRequest(
        stream=Stream.parse(batch.stream),
        seq=batch.seq,
        prev=Cursor.parse(batch.prev),
        cursor=Cursor.parse(batch.cursor),
        digest=batch.digest,
        chain_id=batch.chain_id,
        system_id=batch.system_id,
        rows=batch.rows,
        count=batch.count,
        rules_version=batch.rules_version,
        worker=given.worker,
        node=given.node,
        batch_offset=batch.batch_offset,
        signed_from=tuple(batch.signed_from),
        spend=int(batch.spend_wei),
        sender=batch.sender,
        blobs=batch.blobs,
    )


def _reply(reply: AssignReply) -> body.AssignedOrNot:
    match reply:
        case Assigned(assignment, sealed):
            assigned = body.Assignment.model_validate(body.fields_of(assignment))
            return body.AssignedReply(assignment=assigned, sealed=base64.b64encode(sealed).decode())
        case Published():
            return body.PublishedReply()
        case Refused(reason):
            return body.RefusedReply(reason=reason)
        case Waiting():
            return body.WaitingReply()


def _check_work(keystore: dict[str, object]) -> None:
    """No keystore may take the key manager's memory or time. Raises Problem."""
    crypto = keystore.get("crypto") or keystore.get("Crypto")
    given = crypto.get("kdfparams") if isinstance(crypto, dict) else None
    numbers = given if isinstance(given, dict) else {}
    scrypt, rounds = [numbers.get(name, 1) for name in ("n", "r", "p")], numbers.get("c", 1)
    if not all(isinstance(number, int) and 0 < number <= KDF_WORK_MAX for number in [*scrypt, rounds]):
        raise Problem(Code.INVALID, "keystore: not a keystore V3 file.")
    if _product(scrypt) > KDF_WORK_MAX:
        raise Problem(Code.INVALID, "keystore: takes more work to open than the service allows.")


def _product(numbers: Sequence[int]) -> int:
    made = 1
    for number in numbers:
        made *= number
    return made
