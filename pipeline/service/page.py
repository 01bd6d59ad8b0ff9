"""The page at `/`: one file, with its style and script inside, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

SCRIPT: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)
STYLE: Final = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def html() -> str:
    """The page."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def policy(page: str) -> str:
    """Its Content-Security-Policy (CSP level 3): the inline parts by their hashes, requests to this service only."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(SCRIPT, page)}",
            f"style-src {_hashes(STYLE, page)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hashes(part: re.Pattern[str], page: str) -> str:
    digests = [hashlib.sha256(found.encode()).digest() for found in part.findall(page)]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
