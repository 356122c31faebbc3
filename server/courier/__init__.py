"""The light worker: delivers webhooks, and never touches a device or imports torch.

It lives beside the API because the dialects render the bodies; what waits and who has it is `polyreel.webhooks`.
"""
