"""The trajectory store and what reads it. No Ray, no torch."""
