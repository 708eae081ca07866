"""Two finished runs of the same experiments under two settings, side by side: `compare(DIR1, DIR2)`.

Reads result folders only. `comparable` says what may be compared at all and why the rest may not, `differences` makes
the estimates, `page` shows them.
"""
