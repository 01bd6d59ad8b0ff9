"""Entry points for `ray job submit` and the command line."""
