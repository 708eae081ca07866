"""Where training pairs come from: the one thing in which the arms of a study differ."""
