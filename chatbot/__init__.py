"""The seq2seq core: transcripts, tokenizer, model, decoding, batcher and the model directory.

Imports torch, tokenizers, safetensors and pydantic; never the server, the trainer, threads or an event loop.
"""
