"""Where prompts and first preference pairs come from: built-in worlds, real data sets."""
