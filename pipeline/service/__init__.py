"""The key manager over HTTP, for clients in any language. docs/key-manager.md is its manual."""
