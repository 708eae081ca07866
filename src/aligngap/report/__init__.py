"""What a person reads: `load` a result folder, draw `charts`, write the `page`.

Reads files only, never a model or a store, so that a report can be made again from a result folder alone. The drawing
libraries are imported inside functions, because importing them takes longer than most commands run.
"""
