"""What every stage would do anew that loads a model: transformers compiles some 900 patterns for the names of weights,
of all kinds of models, and keeps them.
"""

import sys
from contextlib import suppress

if patterns := sys.modules.get("transformers.conversion_mapping"):
    with suppress(Exception):  # a version without it costs stages a tenth of a second, and must not cost the server
        patterns.get_checkpoint_conversion_mapping("llama")
