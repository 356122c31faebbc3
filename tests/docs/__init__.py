"""The documentation: which parts of it are generated, and that its code blocks run."""
