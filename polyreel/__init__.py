"""The core of Polyreel: what a video request and a video job are, and where they wait, run and end.

Knows nothing of HTTP (that is `server`), of torch or diffusers (that is `models`), or of the process that
runs a model (that is `workers`); it imports none of the three.
"""

__version__ = "0.1.0"
