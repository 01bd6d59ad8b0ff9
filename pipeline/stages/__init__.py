"""The flow, as async loops over the ports."""
