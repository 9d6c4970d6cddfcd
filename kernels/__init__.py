"""The network's own operations, one file each, as pure functions on tensors.

Every file opens with the formula it computes and holds ``<op>_reference`` (plain torch, the definition) and
the dispatcher ``<op>`` that the network calls.
"""
