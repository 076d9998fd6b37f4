"""What the decoder must undo: transforms and quantizers, frozen once released."""
