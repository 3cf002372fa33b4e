"""The web page of the person at the robot, its server, and what they remember."""
