"""What the server imports lives as long as it does, and to look for garbage in it takes a sixth of the time. A process
that is forked from it turns the collector on, for what it makes itself.
"""

import gc

gc.disable()
