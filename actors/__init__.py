"""Loops that act: the robot episode loop and the imagination loop. No Ray."""
