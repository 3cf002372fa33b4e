"""A DROID control machine and its cameras without hardware, for tests and rehearsals."""
