"""What is measured of a policy: each a function of policies, pairs and judges, per prompt, so that every interval can
be recomputed.
"""
