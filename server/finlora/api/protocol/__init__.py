"""What clients send and get on /v1, as typed objects. No torch here.

Every field is bounded; an unknown one is an error that names it.
"""

from finlora.api.protocol.chat import ChatRequest
from finlora.api.protocol.classify import ClassifyRequest
from finlora.api.protocol.completions import CompletionRequest

__all__ = ["ChatRequest", "ClassifyRequest", "CompletionRequest"]
