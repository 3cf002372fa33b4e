"""Qwen3-VL as a reward model: P('yes') that a clip shows its instruction completed (Eq. 3)."""
