"""Moving scenes: groups of frames, their motion, and the file that holds them (bitstreams/SPEC.md, section 7)."""
