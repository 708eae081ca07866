"""aligngap: is on-policy sampling necessary for alignment?

One trainer, one loss, one starting policy; only the source of the training pairs changes.
"""

__version__ = "0.1.0"
