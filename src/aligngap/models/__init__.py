"""Policies and preference models: Hugging Face models and what this package does with them."""
