"""The API process: speaks each vendor's HTTP dialect, hands requests to the queue, serves results.

Imports the core; never torch, never the model families, never a worker.
"""
