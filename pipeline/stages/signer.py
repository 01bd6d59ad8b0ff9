"""The signer: the only place where a private key is open, and the only path to a signature.

    batch, assignment → same digest? same signable rows? → ledger row (durable) → sign → check → signed record

Everything that could make a second, different answer is refused before the ledger row; nothing after it depends on
anything but the batch, the assignment and the key (RFC 6979), so a repeat gives the same bytes.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.assignment.records import Assignment
from pipeline.custody.sealing import Kek, unseal
from pipeline.custody.unsealed import KeyCache
from pipeline.errors import SigningRefused
from pipeline.ethereum import kernel
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.check import check, sample_rows
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedHeader, SignedRecord
from pipeline.ethereum.validity import RULES_VERSION, explain, judge
from pipeline.ports import Clock, Ledger, LedgerEntry, SignedBatch, SignJob
from pipeline.settings import SigningSettings
