"""A DROID rig: the robot's host and the person beside it. No torch, no Ray."""
