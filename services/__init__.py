"""Scoring, replay, work queues, progress, report: plain classes. No Ray."""
