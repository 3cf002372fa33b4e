"""How close imagined frames are to real ones."""
