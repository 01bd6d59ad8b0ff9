"""The verifier's own reader of signed transactions; shares no code with the kernel.

Plain Python, strict: canonical RLP only (Yellow Paper, appendix B), no trailing byte, low s (EIP-2), known types, and
what blob and set-code transactions must have (EIP-4844, EIP-7702). The sender is recovered with coincurve's public API
and the hash is pysha3's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from coincurve import PublicKey
from sha3 import keccak_256

from pipeline.errors import MalformedBatch

HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
EIP_155_V: Final = 35

Item: TypeAlias = "bytes | list[Item]"
AccessList: TypeAlias = tuple[tuple[bytes, tuple[bytes, ...]], ...]
Authorizations: TypeAlias = tuple[tuple[int, bytes, int, int, int, int], ...]
"""Of each: chain id, address, nonce, y parity, r, s."""

LISTS_DEEP_MAX: Final = 4
"""Transaction, access list, entry, its storage keys: nothing else lies as deep. A bound keeps hostile bytes from
Python's recursion limit."""

FIELDS: Final = {0: 9, 1: 11, 2: 12, 3: 14, 4: 13}
"""How many items a signed transaction of each type has."""

BLOB_HASH_VERSION: Final = 1
"""First byte of a blob's hash (EIP-4844)."""
AUTHORIZATION_BITS: Final = (256, 64, 8, 256, 256)
"""Of the numbers of an authorization; with a larger one the whole transaction is invalid (EIP-7702)."""


@dataclass(frozen=True, slots=True)
class SignedTx:
    """One signed transaction. For types 0 and 1, `max_fee` is the gas price and `priority` is None."""

    type: int
    chain_id: int
    nonce: int
    priority: int | None
    max_fee: int
    gas_limit: int
    to: bytes | None
    value: int
    data: bytes
    access_list: AccessList
    blob_fee: int | None  #: wei per blob gas; None but for type 3
    blob_hashes: tuple[bytes, ...]
    authorizations: Authorizations
    sender: str
    hash: bytes


def decode(raw: bytes) -> SignedTx:
    """Read and recover one transaction. Raises MalformedBatch."""
    if not raw:
        raise MalformedBatch("the transaction is empty.")
    kind = raw[0] if raw[0] < 0x80 else 0
    if kind not in FIELDS or (kind == 0 and raw[0] < 0xC0):
        raise MalformedBatch(f"the transaction has unknown type {raw[0]}.")
    start = 1 if kind else 0
    item, end = _item(raw, start)
    if end != len(raw) or not isinstance(item, list) or len(item) != FIELDS[kind]:
        raise MalformedBatch(f"a transaction of type {kind} is not a list of {FIELDS[kind]} items.")
    return _legacy(raw, item) if kind == 0 else _typed(kind, raw, item)


def _legacy(raw: bytes, items: list[Item]) -> SignedTx:
    v = _number(items[6])
    if v < EIP_155_V:
        raise MalformedBatch(f"v is {v}; a legacy transaction must name its chain (EIP-155).")
    chain_id, parity = divmod(v - EIP_155_V, 2)
    body = b"".join(map(encoded, items[:6])) + encoded(bytes_of(chain_id)) + b"\x80\x80"
    message = keccak_256(_header(len(body), 0xC0) + body).digest()
    return SignedTx(
        type=0,
        chain_id=chain_id,
        nonce=_number(items[0]),
        priority=None,
        max_fee=_number(items[1]),
        gas_limit=_number(items[2]),
        to=_recipient(items[3]),
        value=_number(items[4]),
        data=_bytes(items[5]),
        access_list=(),
        blob_fee=None,
        blob_hashes=(),
        authorizations=(),
        sender=signer_of(message, parity, _number(items[7]), _number(items[8])),
        hash=keccak_256(raw).digest(),
    )


def _typed(kind: int, raw: bytes, items: list[Item]) -> SignedTx:
    tip = 1 if kind >= 2 else 0
    body = b"".join(map(encoded, items[:-3]))
    message = keccak_256(bytes([kind]) + _header(len(body), 0xC0) + body).digest()
    parity = _number(items[-3])
    if parity > 1:
        raise MalformedBatch(f"y parity is {parity}.")
    return SignedTx(
        type=kind,
        chain_id=_number(items[0]),
        nonce=_number(items[1]),
        priority=_number(items[2]) if tip else None,
        max_fee=_number(items[2 + tip]),
        gas_limit=_number(items[3 + tip]),
        to=_recipient(items[4 + tip], creates=kind <= 2),
        value=_number(items[5 + tip]),
        data=_bytes(items[6 + tip]),
        access_list=_access_list(items[7 + tip]),
        blob_fee=_number(items[9]) if kind == 3 else None,
        blob_hashes=_blob_hashes(items[10]) if kind == 3 else (),
        authorizations=_authorizations(items[9]) if kind == 4 else (),
        sender=signer_of(message, parity, _number(items[-2]), _number(items[-1])),
        hash=keccak_256(raw).digest(),
    )


def signer_of(message: bytes, parity: int, r: int, s: int) -> str:
    """The address whose key signed a hash. Raises MalformedBatch."""
    if not 0 < r < ORDER or not 0 < s <= HALF_ORDER:
        raise MalformedBatch("r or s is out of range, or s is in the upper half (EIP-2).")
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([parity])
    try:
        key = PublicKey.from_signature_and_message(signature, message, hasher=None)
    except Exception as error:  # coincurve raises bare Exception
        raise MalformedBatch("no key gives this signature.") from error
    return f"0x{keccak_256(key.format(compressed=False)[1:]).hexdigest()[24:]}"


def _item(raw: bytes, pos: int, lists_left: int = LISTS_DEEP_MAX) -> tuple[Item, int]:
    """One RLP item at `pos`, and where it ends."""
    if pos >= len(raw):
        raise MalformedBatch("RLP ends too early.")
    first = raw[pos]
    if first < 0x80:
        return raw[pos : pos + 1], pos + 1
    start, end = _extent(raw, pos, first, 0x80 if first < 0xC0 else 0xC0)
    if first < 0xC0:
        if end - start == 1 and raw[start] < 0x80:
            raise MalformedBatch("RLP is not canonical: a small byte with a header.")
        return raw[start:end], end
    if lists_left == 0:
        raise MalformedBatch("RLP lists are nested deeper than in any transaction.")
    items: list[Item] = []
    while start < end:
        item, start = _item(raw, start, lists_left - 1)
        items.append(item)
    if start != end:
        raise MalformedBatch("an RLP list does not end where it says.")
    return items, end


def _extent(raw: bytes, pos: int, first: int, short: int) -> tuple[int, int]:
    """Where the payload of a string or list starts and ends."""
    length = first - short
    start = pos + 1
    if length > 55:
        width = length - 55
        digits = raw[start : start + width]
        start += width
        length = int.from_bytes(digits, "big")
        if len(digits) != width or digits[0] == 0 or length < 56:
            raise MalformedBatch("RLP is not canonical: a length is padded or needless.")
    if start + length > len(raw):
        raise MalformedBatch("RLP ends too early.")
    return start, start + length


def _number(item: Item) -> int:
    if isinstance(item, list) or (item and item[0] == 0):
        raise MalformedBatch("a scalar is a list or has a leading zero.")
    return int.from_bytes(item, "big")


def _bytes(item: Item) -> bytes:
    if isinstance(item, list):
        raise MalformedBatch("a byte string is a list.")
    return item


def _recipient(item: Item, *, creates: bool = True) -> bytes | None:
    if isinstance(item, list) or len(item) not in (0, 20):
        raise MalformedBatch("the recipient is not 20 bytes.")
    if not item and not creates:
        raise MalformedBatch("there is no recipient, in a transaction that cannot create a contract.")
    return item or None


def _access_list(item: Item) -> AccessList:
    if not isinstance(item, list):
        raise MalformedBatch("the access list is not a list.")
    entries = []
    for entry in item:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], list):
            raise MalformedBatch("an access list entry is not [address, keys].")
        keys = tuple(_bytes(key) for key in entry[1])
        if len(_bytes(entry[0])) != 20 or any(len(key) != 32 for key in keys):
            raise MalformedBatch("an access list entry has an address or key of the wrong length.")
        entries.append((_bytes(entry[0]), keys))
    return tuple(entries)


def _blob_hashes(item: Item) -> tuple[bytes, ...]:
    if not isinstance(item, list) or not item:
        raise MalformedBatch("the blob hashes are not a list of one or more.")
    hashes = tuple(_bytes(each) for each in item)
    if any(len(each) != 32 or each[0] != BLOB_HASH_VERSION for each in hashes):
        raise MalformedBatch("a blob hash is not 32 bytes, or of another version.")
    return hashes


def _authorizations(item: Item) -> Authorizations:
    if not isinstance(item, list) or not item:
        raise MalformedBatch("the authorizations are not a list of one or more.")
    entries = []
    for entry in item:
        if not isinstance(entry, list) or len(entry) != 6:
            raise MalformedBatch("an authorization is not [chain id, address, nonce, y parity, r, s].")
        address = _bytes(entry[1])
        numbers = [_number(each) for each in (entry[0], *entry[2:])]
        wide = [number >> bits for number, bits in zip(numbers, AUTHORIZATION_BITS, strict=True)]
        if len(address) != 20 or any(wide):
            raise MalformedBatch("an authorization has an address or number of the wrong length.")
        chain_id, nonce, parity, r, s = numbers
        entries.append((chain_id, address, nonce, parity, r, s))
    return tuple(entries)


def encoded(item: Item) -> bytes:
    """The canonical RLP of an item."""
    if isinstance(item, list):
        body = b"".join(map(encoded, item))
        return _header(len(body), 0xC0) + body
    if len(item) == 1 and item[0] < 0x80:
        return item
    return _header(len(item), 0x80) + item


def _header(length: int, short: int) -> bytes:
    if length <= 55:
        return bytes([short + length])
    digits = bytes_of(length)
    return bytes([short + 55 + len(digits)]) + digits


def bytes_of(number: int) -> bytes:
    """A scalar as RLP has it: big-endian without leading zeros."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
