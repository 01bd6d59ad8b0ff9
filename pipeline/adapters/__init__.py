"""The outside, one file and one client library each."""
