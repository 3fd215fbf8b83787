"""The starter base: how the lab's own 12 M parameter Llama is made.

`tokenizer` trains the SentencePiece model, `corpus` turns text into token files, `model` is the network,
`pretrain` trains it with exact resume, `export` writes the folder that the factory uses as a base.
"""
