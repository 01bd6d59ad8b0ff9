"""`oncesign chaos`: faults on real parts under load, then the invariants."""
