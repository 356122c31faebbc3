"""The shipped profiles, read through `importlib.resources`; `polyreel up --config NAME` chooses one."""
