"""Robots behind one protocol: simulated, recorded. No torch."""
