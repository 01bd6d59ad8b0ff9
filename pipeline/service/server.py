"""The service on a port."""

from __future__ import annotations

from aiohttp import web

from pipeline.clock import SystemClock
from pipeline.errors import NotLeader, RuntimeFault, SettingError
from pipeline.journal import Journal
from pipeline.service.application import Service
from pipeline.service.desk import Desk, Leading
from pipeline.service.token import Token
from pipeline.settings import ENV_PREFIX, Settings

journal = Journal(__name__, "service")

SHUTDOWN_S = 5.0
"""How long requests under way may take when the server stops."""


class Server:
    """Serves one key manager until it is stopped."""

    def __init__(self, leading: Leading, settings: Settings) -> None:
        """Raises SecretFileError, SettingError."""
        if settings.service.token_file is None:
            raise SettingError(f"{ENV_PREFIX}SERVICE__TOKEN_FILE", "is not set", hint="The service needs a token.")
        clock = SystemClock()
        self._leading = leading
        self._settings = settings.service
        self._stopping = False
        service = Service(self._lead, Token(settings.service.token_file, clock), clock, settings)
        self._runner = web.AppRunner(
            service.application(), handle_signals=False, access_log=None, shutdown_timeout=SHUTDOWN_S
        )

    async def start(self) -> None:
        """Raises RuntimeFault when the port cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._settings.host, self._settings.port).start()
        except OSError as error:
            await self._runner.cleanup()
            where = f"{self._settings.host}:{self._settings.port}"
            raise RuntimeFault(f"the key manager's service cannot listen on {where}: {error.strerror}.") from None
        journal.succeeded("listens", address=self.address)

    @property
    def address(self) -> str:
        """http://host:port, with the port that it got when the settings ask for any."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    def refuse(self) -> None:
        """Let nobody make the key manager lead again."""
        self._stopping = True

    async def stop(self) -> None:
        """Close the port, then wait for requests under way, for SHUTDOWN_S at the most."""
        self.refuse()
        await self._runner.cleanup()

    async def _lead(self) -> Desk:
        if self._stopping:
            raise NotLeader("this key manager stops.", hint="Another one will lead in a moment.")
        return await self._leading()
