"""Whose key: sealing, import, and the unsealed key that never prints."""
