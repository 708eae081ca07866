"""Statistics of the gap: pure functions of arrays (numpy and scipy only), importing nothing else of aligngap."""
