"""What the fork server imports after all else (`executors.server`), for what it does on import: what every stage would
do again. To ask git for the revision; and where it loads a model, transformers compiles some 900 patterns for the names
of weights, of all kinds of models, and keeps them. What is imported by now is kept from the collector, which at the end
of the server's process would look through all of it, for a second.
"""

import gc
import sys
from contextlib import suppress

from aligngap.pipeline.temporary import remove_with_this_process
from aligngap.store.record import code

remove_with_this_process()
code()
if patterns := sys.modules.get("transformers.conversion_mapping"):
    with suppress(Exception):  # a version without it costs stages a third of a second, and must not cost the server
        patterns.get_checkpoint_conversion_mapping("llama")
gc.freeze()
