"""What may be written in `config`: one typed schema, checked before anything starts.

Nothing here imports Ray, torch, vLLM or PEFT, so that a mistyped key is answered at
once; what their own settings may be is read from their installed source.
"""
