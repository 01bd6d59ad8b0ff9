"""KEKs wrapped by AWS KMS (GenerateDataKey, Decrypt).

Credentials, region and endpoint are boto3's own: its variables, profiles, a pod's role (docs of boto3, "Credentials").
The encryption context is part of what is authenticated, and is in CloudTrail beside each use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pipeline.custody.sealing import KEK_BYTES
from pipeline.errors import KeyStoreUnavailable, SecretFileError

CONTEXT: Final = {"oncesign": "key-encryption key"}
TIMEOUT_S: Final = 3.0
TRIES: Final = 3
REFUSALS: Final = frozenset(
    {
        "AccessDeniedException",
        "DisabledException",
        "IncorrectKeyException",
        "InvalidCiphertextException",
        "InvalidKeyUsageException",
        "KMSInvalidStateException",
        "NotFoundException",
        "UnrecognizedClientException",
        "ValidationException",
    }
)
"""What KMS says when it will say the same again."""


class AwsKms:
    """Fulfils custody.envelope.KeyStore."""

    def new(self, key: str) -> tuple[bytes, bytes]:
        """See KeyStore."""
        with _told(key) as client:
            answer = client.generate_data_key(KeyId=key, NumberOfBytes=KEK_BYTES, EncryptionContext=CONTEXT)
        return answer["Plaintext"], answer["CiphertextBlob"]

    def unwrap(self, key: str, ciphertext: bytes) -> bytes:
        """See KeyStore."""
        with _told(key) as client:
            answer = client.decrypt(KeyId=key, CiphertextBlob=ciphertext, EncryptionContext=CONTEXT)
        secret: bytes = answer["Plaintext"]
        return secret


@contextmanager
def _told(key: str) -> Iterator[Any]:
    """A client, and its errors as ours."""
    try:
        # Half a second that only who keeps a KEK there should spend; an extra of the package.
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    except ImportError:
        raise SecretFileError("AWS KMS needs boto3.", hint="Install oncesign[aws].") from None
    retries: Any = {"total_max_attempts": TRIES, "mode": "standard"}
    config = Config(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries=retries)
    try:
        yield boto3.client("kms", config=config)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        said = f"AWS KMS refuses {key}: {code}"
        if code in REFUSALS:
            raise SecretFileError(f"{said}.", hint="See docs/custody.md, 'A KEK in a key store'.") from None
        raise KeyStoreUnavailable(said, address="AWS KMS") from None
    except BotoCoreError as error:  # no region, no credentials, no network; its frames may hold the answer
        raise KeyStoreUnavailable(f"{type(error).__name__}: {error}", address="AWS KMS") from None
