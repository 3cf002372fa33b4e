"""What a host can drive. Each module brings one kind of hardware and is imported when asked for."""
