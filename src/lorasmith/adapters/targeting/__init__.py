"""Which layers get an adapter, with which rank, alpha and learning rate."""
