"""The model process: takes jobs from the queue, runs the pipeline, encodes and stores the files, ends the record.

Imports the core and the model families; never the API.
"""
