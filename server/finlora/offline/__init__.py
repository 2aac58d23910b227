"""The engine in this process, without HTTP: texts in, answers out, in order."""
