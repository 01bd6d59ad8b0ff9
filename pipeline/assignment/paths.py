"""Where etcd holds what (design: public contract)."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.stream import Stream


@dataclass(frozen=True, slots=True)
class Paths:
    """The keys of one deployment."""

    deployment: str

    @property
    def root(self) -> str:
        """Everything of the deployment is below it."""
        return f"/oncesign/{self.deployment}"

    @property
    def genesis(self) -> str:
        """Made once."""
        return f"{self.root}/genesis"

    @property
    def leader(self) -> str:
        """The only key with a lease."""
        return f"{self.root}/leader"

    @property
    def keys(self) -> str:
        """Prefix of all key records."""
        return f"{self.root}/keys/"

    @property
    def sealed_keys(self) -> str:
        """Prefix of all sealed private keys."""
        return f"{self.root}/sealed/"

    @property
    def streams(self) -> str:
        """Prefix of all stream records."""
        return f"{self.root}/streams/"

    @property
    def assignments(self) -> str:
        """Prefix of all assignments."""
        return f"{self.root}/assignments/"

    @property
    def owners(self) -> str:
        """Prefix of the owners of all deployments' keys. No deployment's name begins with an underscore."""
        return "/oncesign/_owners/"

    def owner(self, address: str) -> str:
        """Whose key this is."""
        return f"{self.owners}{address}"

    def key(self, chain_id: int, address: str) -> str:
        """A key record."""
        return f"{self.keys}{chain_id}/{address}"

    def sealed(self, address: str) -> str:
        """A sealed private key."""
        return f"{self.sealed_keys}{address}"

    def stream(self, stream: Stream) -> str:
        """A stream record."""
        return f"{self.streams}{stream}"

    def assignment(self, stream: Stream, seq: int) -> str:
        """An assignment."""
        return f"{self.assignments}{stream}/{seq}"
