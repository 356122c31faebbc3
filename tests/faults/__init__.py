"""What happens to acknowledged jobs when parts of the server die, hang, fill up or lie about the time.

Real processes, a real Valkey, real files: only the model is a stand-in (`paced`), so that seconds per step are a
matter of the prompt. `stand` starts and kills the parts, `clients` are the vendors' clients and remember what they
saw, `laws` are what must hold after every fault, `storm` is all of it at once.
"""
