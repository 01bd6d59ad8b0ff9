"""An authorization of a set-code transaction: an account's word that its code is that at an address (EIP-7702).

It is signed by the account that gets the code, which need not be the one that sends the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from coincurve import PrivateKey
from sha3 import keccak_256

from pipeline.errors import MalformedBatch, SigningRefused
from pipeline.ethereum.batch import ADDRESS
from pipeline.ethereum.decoding import bytes_of, encoded, signer_of

MAGIC: Final = b"\x05"
"""Before what is signed, so that it is no transaction (EIP-7702)."""
SECRET_BYTES: Final = 32
NUMBER_END: Final = 2**64
"""Of chain ids and nonces, as a batch holds them."""
NONCE_END: Final = 2**64 - 1
"""The first number that is no nonce (EIP-2681)."""


def sign_authorization(secret: bytes, chain_id: int, address: str, nonce: int) -> dict[str, str]:
    """An entry of a row's `authorization_list`, as nodes write it.

    Args:
        secret: 32 bytes, of the account that gets the code.
        chain_id: where it holds; 0 = on every chain.
        address: of the contract whose code it gets; 0x00…00 takes the code away again.
        nonce: of the account when the transaction is executed; one above the transaction's own when it sends itself.

    Raises:
        SigningRefused: the secret is no private key, the address not 20 bytes of hex, or a number out of range.
    """
    if not (0 <= chain_id < NUMBER_END and 0 <= nonce < NONCE_END):
        raise SigningRefused(f"chain id {chain_id} or nonce {nonce} is out of range (EIP-2681, EIP-7702).")
    try:
        message = _message(chain_id, address, nonce)
        if len(secret) != SECRET_BYTES:  # coincurve would pad a shorter one
            raise SigningRefused(f"a private key has {SECRET_BYTES} bytes.")
        signature: bytes = PrivateKey(secret).sign_recoverable(message, hasher=None)
    except MalformedBatch as error:
        raise SigningRefused(error.message) from error
    except ValueError:
        raise SigningRefused("these bytes are no private key.") from None
    return {
        "chainId": hex(chain_id),
        "address": address.lower(),
        "nonce": hex(nonce),
        "yParity": hex(signature[64]),
        "r": hex(int.from_bytes(signature[:32], "big")),
        "s": hex(int.from_bytes(signature[32:64], "big")),
    }


def authority(entry: Mapping[str, str]) -> str:
    """The account that signed an entry, lower-case with 0x: the one whose code it sets. Raises MalformedBatch."""
    try:
        chain_id, nonce, parity, r, s = (int(entry[name], 16) for name in ("chainId", "nonce", "yParity", "r", "s"))
        message = _message(chain_id, entry["address"], nonce)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MalformedBatch(f"the authorization lacks or garbles {error}.") from error
    if parity not in (0, 1):
        raise MalformedBatch(f"y parity is {parity}.")
    return signer_of(message, parity, r, s)


def _message(chain_id: int, address: str, nonce: int) -> bytes:
    """The hash that is signed."""
    if not ADDRESS.fullmatch(address.lower()):
        raise MalformedBatch("the address of the code is not 20 bytes of hex.")
    fields = [bytes_of(chain_id), bytes.fromhex(address[2:]), bytes_of(nonce)]
    digest: bytes = keccak_256(MAGIC + encoded([*fields])).digest()
    return digest
