"""Causal language models: loading and saving, and the LightningModules that train them."""
