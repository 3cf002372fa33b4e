"""A DROID rig: the process beside the arm, and how a run talks to it."""
