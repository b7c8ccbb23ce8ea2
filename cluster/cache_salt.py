"""Which salt keeps a tenant's cached prefixes apart from others': made from the secret of the cluster, so that knowing
one tenant's says nothing of another's.

Pure. Two tenants of one prefix group have one salt; nobody in particular has none.
"""

from __future__ import annotations

import hashlib
import hmac

_BYTES = 16
_PURPOSE = b"baton cache salt 1"


class CacheSalts:
    """`secret`: of the cluster, the same in all routers."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, _PURPOSE, "sha256")  # the secret has other uses

    def of_tenant(self, tenant: str) -> str:
        return self._made(f"tenant {tenant}")

    def of_group(self, group: str) -> str:
        """What tenants have that may share."""
        return self._made(f"group {group}")

    def _made(self, content: str) -> str:
        return hmac.digest(self._key, content.encode(), "sha256")[:_BYTES].hex()


def mixed(salt: str, wished: str) -> str:
    """`wished` is what a client asks for: it divides what its tenant has, and never reaches what others have."""
    if not wished:
        return salt
    text = wished.encode(errors="surrogatepass")  # JSON can hold half a character
    return hashlib.blake2b(text, digest_size=_BYTES, key=salt.encode() or _PURPOSE).hexdigest()
