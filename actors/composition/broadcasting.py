"""What a broadcaster works with, and the Ethereum node by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from pydantic import SecretStr

from actors.composition import CLOCK
from actors.composition.bus import batch_log
from pipeline.adapters.blobs import BlobDirectory
from pipeline.adapters.broadcasts import PostgresBroadcasts
from pipeline.adapters.node import RpcNode
from pipeline.adapters.secret_file import secret_of
from pipeline.errors import SecretFileError, SettingError
from pipeline.settings import Settings
from pipeline.stages.broadcaster import Broadcaster, BroadcasterPorts


def rpc_url(settings: Settings) -> SecretStr:
    """Of the node that ONCESIGN_BROADCAST__RPC_FILE names. Raises SecretFileError."""
    file = settings.broadcast.rpc_file
    if file is None:
        raise SecretFileError("there is no file with a node's URL.", hint="Name one in ONCESIGN_BROADCAST__RPC_FILE.")
    return SecretStr(secret_of(file, "the URL of an Ethereum node"))


def node(settings: Settings, url: SecretStr) -> RpcNode:
    """The node of a URL; of an empty one, that of the settings. Raises SettingError, SecretFileError."""
    return RpcNode(url if url.get_secret_value() else rpc_url(settings), settings.broadcast.timeout_s)


@asynccontextmanager
async def broadcaster(settings: Settings, url: SecretStr) -> AsyncIterator[Broadcaster]:
    """For the chain of that node. Raises SettingError for a chain of no source, NodeUnavailable."""
    async with AsyncExitStack() as stack:
        client = node(settings, url)
        stack.push_async_callback(client.close)
        chain_id = await client.chain_id()
        if chain_id not in {source.chain_id for source in settings.sources}:
            known = ", ".join(f"{source.name} has chain {source.chain_id}" for source in settings.sources)
            raise SettingError("--rpc", f"is a node of chain {chain_id}", hint=f"Source {known}.")
        broadcasts = PostgresBroadcasts(settings.postgres)
        stack.push_async_callback(broadcasts.close)
        blobs = BlobDirectory(settings.broadcast.blobs_dir)
        log = await stack.enter_async_context(batch_log(settings))
        ports = BroadcasterPorts(client, blobs, log, broadcasts, CLOCK)
        yield Broadcaster(ports, chain_id, settings.broadcast)
