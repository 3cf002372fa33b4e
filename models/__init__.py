"""Policies, world models, reward models, kinematics and metrics. No Ray, no storage."""
