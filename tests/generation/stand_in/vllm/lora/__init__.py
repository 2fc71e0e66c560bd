"""Stands in for vLLM's LoRA."""
