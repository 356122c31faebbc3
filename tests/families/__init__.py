"""Model families of one behaviour each, for tests of the worker. They implement `models.Family` and need no torch."""
