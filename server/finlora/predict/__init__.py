"""Labels for files: rows in, the same rows with labels out, in this process or by a server."""
