"""Diagnosis before spending: what a preference data set is to an SFT policy, before any arm is trained on it.

`subject` opens what is looked at, `findings` measures it, `regime` says which of the original's data sets it resembles,
`page` and `terminal` show both.
"""
