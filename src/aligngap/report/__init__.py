"""What a person reads: `load` a result folder, choose its `figures`, draw them from `specs` in one `style`, as `still`
images and in the `page`.

Reads files only, never a model or a store, so that a report can be made again from a result folder alone. The drawing
libraries are imported inside functions, or with `specs`, because importing them takes longer than most commands run.
"""
