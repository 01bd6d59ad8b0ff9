"""Every error that oncesign raises on purpose, as one tree.

    OncesignError                 exit 1
    ├── UsageError                exit 2   the caller can mend it
    │   ├── SettingError                   which setting, why, what to do
    │   ├── SecretFileError                a KEK, keystore or password file
    │   ├── InputFileError                 rows of a user's file
    │   ├── OutputFileError                a file that cannot be written as asked
    │   ├── KeyNotInPool                   no such key on that chain
    │   └── NotReleasable                  a worker does not hold this batch, or nobody signed it
    ├── DependencyDown            exit 3   which dependency, where, what was tried
    │   ├── StoreUnavailable               etcd
    │   ├── BusUnavailable                 Kafka
    │   ├── DatabaseUnavailable            Postgres
    │   ├── RayUnavailable                 Ray
    │   ├── NodeUnavailable                an Ethereum node
    │   ├── KeyStoreUnavailable            what keeps the key-encryption key wrapped
    │   └── DiskFull                       the data directory
    ├── Ambiguous                 exit 1   sent, and no answer: it may have happened
    │   ├── AmbiguousTxn                   an etcd transaction
    │   └── AmbiguousRound                 a Kafka transaction
    ├── RoundAborted              exit 1   a Kafka transaction that certainly did not happen
    ├── ProducerFenced            exit 5   another process took over our transactional.id
    ├── MalformedBatch            exit 1   bytes that are not a batch of ours
    ├── RuntimeFault              exit 1   a server or process of ours would not start or stop
    ├── NonceMismatch             exit 1   a chain and the pool do not agree about the nonces of keys
    ├── NotMined                  exit 1   signed transactions that a node refuses, or whose nonce is gone
    ├── ViolationFound            exit 4   the verifier found one
    └── Halted                    exit 5   fail closed until an operator acts
        ├── StreamHalted                   one stream; the others go on
        ├── DeploymentHalted               all of it: etcd and the ledger disagree
        ├── LedgerRefused                  the second guard said no
        ├── FillRefused                    the same, of nonces before a key's first
        ├── SigningRefused                 a signer was asked to sign what it must not
        └── NotLeader                      another key manager holds the deployment

The class docstring is the default message. An error says what to do next; `hint` holds that sentence.
"""

from __future__ import annotations

from typing import Any, ClassVar


class OncesignError(Exception):
    """Something failed."""

    exit_code: ClassVar[int] = 1
    hint: str = ""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.hint = hint if hint is not None else type(self).hint
        super().__init__(self.message)

    def __str__(self) -> str:
        if self.hint and self.message[-1:] not in ".!?":
            return f"{self.message}. {self.hint}"
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles errors between actors; keyword-only fields would be lost by Exception's own way.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[OncesignError], args: tuple[Any, ...], fields: dict[str, Any]) -> OncesignError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(fields)
    return error


class UsageError(OncesignError):
    """The command cannot be carried out as given."""

    exit_code = 2


class SettingError(UsageError):
    """A setting is wrong."""

    def __init__(self, setting: str, why: str, *, hint: str = "") -> None:
        self.setting = setting
        super().__init__(f"{setting}: {why}", hint=hint)


class SecretFileError(UsageError):
    """A file that holds a secret cannot be used."""


class InputFileError(UsageError):
    """A file of rows cannot be used."""


class OutputFileError(UsageError):
    """A file cannot be written as asked."""


class KeyNotInPool(UsageError):
    """The pool of this chain has no such key."""

    def __init__(self, chain_id: int, address: str) -> None:
        self.chain_id = chain_id
        self.address = address
        super().__init__(f"{address} is not in the pool of chain {chain_id}.", hint="See: oncesign keys list")


class NotReleasable(UsageError):
    """A batch is not this worker's to release."""

    def __init__(self, stream: str, seq: int, why: str) -> None:
        self.stream = stream
        self.seq = seq
        super().__init__(f"batch {seq} of {stream} {why}.", hint="Nothing was released.")


class DependencyDown(OncesignError):
    """A server that the pipeline needs does not answer."""

    exit_code = 3
    dependency: ClassVar[str] = "a dependency"

    def __init__(self, message: str | None = None, *, address: str = "", hint: str | None = None) -> None:
        self.address = address
        where = f"{self.dependency} at {address}" if address else self.dependency
        super().__init__(f"{where}: {message}" if message else f"{where} does not answer.", hint=hint)


class StoreUnavailable(DependencyDown):
    """etcd does not answer."""

    dependency = "etcd"
    hint = "Start it with `oncesign up`, or set ONCESIGN_ETCD__ENDPOINTS to one that runs."


class BusUnavailable(DependencyDown):
    """Kafka does not answer."""

    dependency = "Kafka"
    hint = "Start it with `oncesign up`, or set ONCESIGN_KAFKA__BOOTSTRAP_SERVERS to one that runs."


class DatabaseUnavailable(DependencyDown):
    """Postgres does not answer."""

    dependency = "Postgres"
    hint = "Start it with `oncesign up`, or set ONCESIGN_POSTGRES__DSN to one that runs."


class RayUnavailable(DependencyDown):
    """Ray does not answer."""

    dependency = "Ray"
    hint = "Start the pipeline with `oncesign sign`, or name a cluster with --address."


class NodeUnavailable(DependencyDown):
    """An Ethereum node does not answer."""

    dependency = "the Ethereum node"
    hint = "Check the URL of --rpc or of the file in ONCESIGN_BROADCAST__RPC_FILE, and whether the node runs."


class KeyStoreUnavailable(DependencyDown):
    """The key store does not answer."""

    dependency = "the key store"


class DiskFull(DependencyDown):
    """The data directory has no room."""

    dependency = "the disk"
    hint = "Free room, then run the same command again; nothing that was committed is lost."


class Ambiguous(OncesignError):
    """A request was sent and no answer came: it may have happened."""


class AmbiguousTxn(Ambiguous):
    """An etcd transaction was sent and no answer came; send the identical one again."""


class AmbiguousRound(Ambiguous):
    """A Kafka transaction was ended and no answer came; rebuild the producer and read the offsets back."""


class RoundAborted(OncesignError):
    """A Kafka transaction was aborted; none of its records will be seen by read_committed."""


class ProducerFenced(OncesignError):
    """Another process has taken over this transactional.id."""

    exit_code = 5


class MalformedBatch(OncesignError):
    """These bytes are not a batch that this version can read."""


class RuntimeFault(OncesignError):
    """A server or process of the pipeline would not start or stop."""


class ActorBroken(RuntimeFault):
    """The process of an actor cannot be made, and no other try would do better: its image or machine is at fault."""

    hint = "Its stack is in that actor's log, in the Ray dashboard. Mend the image or the machine, and sign again."


class NotMined(OncesignError):
    """Signed transactions cannot be mined as things are."""

    hint = "Mend the cause and run the same command again: see docs/broadcast.md."


class NonceMismatch(OncesignError):
    """A chain has other nonces of keys than the pool."""


class ViolationFound(OncesignError):
    """The verifier found a violation of exactly-once."""

    exit_code = 4


class Halted(OncesignError):
    """Halted until an operator acts."""

    exit_code = 5


class StreamHalted(Halted):
    """A stream is halted; other streams go on."""

    def __init__(self, stream: str, reason: str, *, hint: str = "See docs/operations.md, 'A halted stream'.") -> None:
        self.stream = stream
        self.reason = reason
        super().__init__(f"stream {stream} is halted: {reason}.", hint=hint)


class DeploymentHalted(Halted):
    """etcd and the signing ledger disagree; nothing is signed."""


class LedgerRefused(Halted):
    """The signing ledger refused a row: signing it could repeat a nonce or sign a batch a second way."""

    def __init__(self, stream: str, seq: int, reason: str) -> None:
        self.stream = stream
        self.seq = seq
        self.reason = reason
        super().__init__(
            f"the signing ledger refused {stream} batch {seq}: {reason}.",
            hint="Nothing was signed. See docs/operations.md, 'A halted stream'.",
        )


class FillRefused(Halted):
    """The ledger refuses to close nonces that were, or could be, given out."""


class SigningRefused(Halted):
    """A signer was given a batch, an assignment and a key that do not belong together."""


class NotLeader(Halted):
    """Another key manager holds this deployment."""
