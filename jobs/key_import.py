"""Private keys out of files into the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from jobs.keys import Form, import_keys, pool_keks
from pipeline.adapters.node import RpcNode
from pipeline.custody.key_file import KeyFiles
from pipeline.custody.unsealed import UnsealedKey
from pipeline.errors import UsageError
from pipeline.settings import Settings
from pipeline.stages.nonces import start_nonces


@dataclass(frozen=True, slots=True)
class Start:
    """What is said of the keys' first nonces."""

    nonce: int | None
    rpc: SecretStr  #: of the node that is asked instead; empty = none
    with_pending: bool

    def require(self) -> None:
        """Raises UsageError for both a nonce and a node, and for what only a node can know."""
        if self.nonce is not None and self.rpc.get_secret_value():
            raise UsageError("--nonce and --rpc exclude each other.")
        if self.with_pending and not self.rpc.get_secret_value():
            raise UsageError("--with-pending needs --rpc.")


def read(
    form: Form, files: list[Path], password_file: Path | None, path: str, count: int, *, force: bool
) -> list[UnsealedKey]:
    """The keys in files of this form; the caller wipes them. Raises SecretFileError, UsageError."""
    found = KeyFiles(files, open_too=force)
    match form:
        case Form.HEX:
            return found.hex()
        case Form.MNEMONIC:
            return found.mnemonics(password_file, path, count)
    if password_file is None:
        raise UsageError("keystores need --password-file.", hint="Or say what the files are: --format hex|mnemonic")
    return found.keystores(password_file)


class Intake:
    """One import for one chain."""

    def __init__(self, settings: Settings, chain_id: int, start: Start) -> None:
        """Raises UsageError."""
        start.require()
        self._settings = settings
        self._chain_id = chain_id
        self._start = start

    async def bring_in(self, keys: Sequence[UnsealedKey]) -> list[str]:
        """Seal them and put them into the pool; their addresses. Raises OncesignError, and nothing is imported then."""
        keks = await pool_keks(self._settings)
        addresses = [key.address for key in keys]
        nonces = await self._nonces(addresses)
        sealed = []
        for key, nonce in zip(keys, nonces, strict=True):
            sealed.append((self._chain_id, key.address, keks.seal(bytes(key.reveal()), key.address), nonce))
            key.wipe()
        await import_keys(self._settings, sealed)
        return addresses

    async def _nonces(self, addresses: list[str]) -> Sequence[int]:
        if not self._start.rpc.get_secret_value():
            return [self._start.nonce or 0] * len(addresses)
        node = RpcNode(self._start.rpc, self._settings.broadcast.timeout_s)
        try:
            return await start_nonces(node, self._chain_id, addresses, with_pending=self._start.with_pending)
        finally:
            await node.close()
