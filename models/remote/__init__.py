"""A policy that runs elsewhere, behind openpi's websocket protocol; numpy only, no torch."""
