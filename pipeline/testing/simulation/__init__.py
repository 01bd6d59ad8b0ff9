"""A whole cluster of the real stages on one seeded event loop, with twins for all that is outside of them."""
