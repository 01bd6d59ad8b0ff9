"""What oncesign decides. Never imports ray."""
