"""Stands in for vLLM's requests with an adapter."""

from dataclasses import dataclass


@dataclass
class LoRARequest:
    """An adapter by name, number and path."""

    lora_name: str
    lora_int_id: int
    lora_path: str
