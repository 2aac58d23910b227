"""An adapter that brings a quantised base itself back to its 16-bit original, without labels."""
