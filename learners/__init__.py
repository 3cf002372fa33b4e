"""Losses, data samplers and one shared train loop with exact resume. No Ray."""
