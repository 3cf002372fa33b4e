"""Every knob, typed and checked, and the YAML that sets it; no torch."""
