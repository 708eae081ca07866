"""Who decides which of two responses is preferred."""
