"""Which key and which nonces: records, pure rules, the key manager's loop."""
