"""Values and protocols that cross processes; stdlib, numpy and jaxtyping only."""
