"""A run watched in the browser while it goes on: the report of what is finished so far, and where the stages stand.

Everything comes from what the run leaves on disk (study.json, status.json, the store), and nothing is ever written
there, so that a run may be watched from its start, through its death, by anyone who may read it.
"""
