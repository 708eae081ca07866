"""Decoders of Llama's type, read by a forward pass of our own: the same weights and the same maths with less work.

`transformers` pads a batch to a rectangle and masks. Here a batch is one list of real tokens of variable length
(varlen): norms, projections and feed-forward layers see no padding, and only attention is computed on grids, a
segment's on its prompt and itself. The last layer computes what is asked of it and no more, the head only what predicts
a token. Sampling keeps its own KV cache and multiplies by fused weights. `layout.detect` compares what comes of it with
what the model itself gives before it is used.

Shapes: N tokens in the list, B prompts, S segments behind each, P and T tokens in the longest prompt and segment; H
query heads, G heads of keys and values, D numbers in a head, E in a hidden state; V tokens in the vocabulary.
"""
