"""Rows to sign: mocked ones that look like real traffic, and a user's own from files."""
