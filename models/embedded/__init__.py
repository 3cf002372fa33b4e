"""The small policy, world model and reward model of the embedded scale."""
