"""The numbers of the rules that a row must fulfil to be signed (pipeline.ethereum.validity), and the rules' versions.

Apart from the rules themselves, which are compiled: most commands need a number and no compiler.
"""

from __future__ import annotations

from typing import Final

RULES_VERSION: Final = 1
WIDE_RULES_VERSION: Final = 2

CHAIN_ID_MAX: Final = 2**63 - 37
"""So that v = 35 + 2 · chain id + 1 fits 64 bits everywhere (EIP-2294)."""

TX_GAS: Final = 21_000  # Yellow Paper, G_transaction
CREATE_GAS: Final = 32_000  # G_txcreate, EIP-2
ZERO_BYTE_GAS: Final = 4
NONZERO_BYTE_GAS: Final = 16  # EIP-2028
INIT_WORD_GAS: Final = 2  # EIP-3860
ADDRESS_GAS: Final = 2_400  # EIP-2930
STORAGE_KEY_GAS: Final = 1_900  # EIP-2930
AUTHORIZATION_GAS: Final = 25_000  # PER_EMPTY_ACCOUNT_COST, EIP-7702
FLOOR_TOKEN_GAS: Final = 10  # EIP-7623
TOKENS_PER_NONZERO_BYTE: Final = 4  # EIP-7623
INIT_CODE_MAX_BYTES: Final = 49_152  # EIP-3860
DATA_MAX_BYTES: Final = 131_072
"""go-ethereum's pool takes transactions of up to 128 KiB; this bounds the data alone, so a few bytes less may still be
too much for it."""
GAS_LIMIT_BITS: Final = 63
"""What fits the signed 64-bit integers of nodes' databases and explorers."""
BLOBS_MAX: Final = 6  # of a transaction, EIP-7594
BLOB_GAS: Final = 131_072  # EIP-4844
BLOB_HASH_VERSION: Final = 1  # first byte of a blob's hash, EIP-4844
ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of the curve secp256k1."""
AUTHORIZATION_NONCE_END: Final = 2**64 - 1  # EIP-2681
