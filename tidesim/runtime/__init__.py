"""The torch side: the model, its checkpoints, decoding and the capture of traces."""
