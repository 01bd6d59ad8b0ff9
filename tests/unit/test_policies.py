"""A source's policy on its way: from the reader's batches to what the verifier says, across versions and repeats."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.ethereum.batch import Batch
from pipeline.ethereum.policy import Policy, applied
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedRecord
from pipeline.ethereum.validity import judge
from pipeline.stages.violation import ViolationKind
from pipeline.testing.policies import TwinPolicies
from tests.published import REJECTED, SECRETS, SIGNED, SOURCE, Publisher, kinds, tables, verifier
from tests.unit.flow_world import BATCHES, Flow
from tests.unit.test_sweeper import ROWS, passed_over, unpublished

NO_VALUE, NO_CREATION = "value_max_wei = 0", "creations = false\nselectors = []"


async def test_a_repeat_denies_what_was_denied_then(flow: Flow) -> None:
    """Signed again from Postgres, after the policy has changed and the topic of batches is empty."""
    flow.policy = await flow.policies.version(SOURCE.name, "gas_limit_max = 21000")
    flow.ids = flow.stock(ROWS)
    flow.read()
    await flow.until(lambda: len(flow.seen(BATCHES)) == 2)
    batches = [Batch.decode(message.value) for message in flow.seen(BATCHES)]
    denied = [Reason(int(each)) for batch in batches for each in judge(batch) if each]
    assert denied
    assert set(denied) == {Reason.POLICY_GAS_LIMIT}
    await unpublished(flow)
    before = {(a.stream, a.seq): a.digest for a in await flow.assignments()}
    await flow.policies.version(SOURCE.name, NO_VALUE)
    passed_over(flow)
    for shard in (0, 1):
        flow.broker.partition(BATCHES, shard).trim(10**6)
    assert (await flow.sweep()).count.signed_again == 2
    found = [SignedRecord.decode(message.value).header for message in flow.seen(SIGNED)]
    assert {(header.stream, header.seq): header.digest for header in found} == before
    assert {header.policy for header in found} == {1}
    rejections = [Rejection.from_json(message.value) for message in flow.seen(REJECTED)]
    assert [(each.reason, each.policy) for each in rejections] == [("policy_gas_limit", 1)] * len(denied)


# ── the verifier ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def publisher() -> Publisher:
    made = Publisher()
    made.stock(60, invalid_share=0.2)
    return made


async def judged(publisher: Publisher, shard: int, policy: Policy) -> Batch:
    batch = await publisher.batch(shard, 30)
    return Batch.build(replace(batch.header, policy=policy.version), applied(policy, batch.rows))


async def publish(publisher: Publisher, batch: Batch, secret: bytes) -> None:
    record = publisher.sign(batch, secret)
    record = SignedRecord(replace(record.header, policy=batch.header.policy), record.rows)
    await publisher.swear(record)
    publisher.publish(record, batch.header.stream.shard)
    publisher.reject(batch)


async def found_by(publisher: Publisher, policies: TwinPolicies) -> set[ViolationKind]:
    looking = verifier(publisher, tables(publisher), policies=policies)
    await looking.catch_up()
    return kinds(await looking.reconcile())


async def test_honest_batches_under_two_versions_are_sound(publisher: Publisher) -> None:
    policies = TwinPolicies()
    for shard, text in enumerate((NO_VALUE, NO_CREATION)):
        policy = await policies.version(SOURCE.name, text)
        await publish(publisher, await judged(publisher, shard, policy), SECRETS[shard])
    assert await found_by(publisher, policies) == set()


async def test_a_denied_row_that_was_signed_is_found(publisher: Publisher) -> None:
    policies = TwinPolicies()
    policy = await policies.version(SOURCE.name, NO_VALUE)
    honest = await judged(publisher, 0, policy)
    lax = Batch.build(honest.header, applied(Policy(policy.version), (await again(publisher)).rows))
    await publish(publisher, lax, SECRETS[0])
    await publish(publisher, await judged(publisher, 1, policy), SECRETS[1])
    assert ViolationKind.WRONG_VERDICT in await found_by(publisher, policies)


async def again(publisher: Publisher) -> Batch:
    """The first batch of shard 0 as the source has it."""
    publisher.cursors.pop(0)
    publisher.seqs.pop(0)
    return await publisher.batch(0, 30)


async def test_a_good_row_that_was_denied_is_found(publisher: Publisher) -> None:
    policies = TwinPolicies()
    policy = await policies.version(SOURCE.name, "")
    stricter = replace(policy, value_max=0)
    await publish(publisher, await judged(publisher, 0, stricter), SECRETS[0])
    await publish(publisher, await judged(publisher, 1, policy), SECRETS[1])
    assert await found_by(publisher, policies) == {ViolationKind.WRONG_VERDICT}


async def test_a_policy_that_never_was_is_found(publisher: Publisher) -> None:
    policies = TwinPolicies()
    await policies.version(SOURCE.name, NO_VALUE)
    await publish(publisher, await judged(publisher, 0, Policy(9)), SECRETS[0])
    await publish(publisher, await judged(publisher, 1, Policy(1, value_max=0)), SECRETS[1])
    assert ViolationKind.UNREADABLE in await found_by(publisher, policies)
