"""One loop for every arm, and supervised training for what comes before it."""
